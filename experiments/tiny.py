"""The smallest experiment, for examples and a first look: BERT of one layer, four steps, seconds on one core.

    python launch.py train tiny --with corpus=TEXT.txt

Cost and score: not measured here; in four steps it learns nothing. `first.py` and `quickstart.py` do.
"""

from dataclasses import replace
from pathlib import Path

from encoders.data.formats import SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import bert
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.text.tokenization import TokenizerSpec
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW

SIZES = dict(
    vocab_size=300, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, embedding_size=16, max_positions=32
)


def experiments(corpus: str):
    return [
        Experiment(
            name="tiny",
            model=replace(bert.TINY, **SIZES),
            objective=MaskedLM(Masking(), NextSentencePrediction()),
            data=PretrainingData(
                corpus=(corpus,),
                tokenizer=TokenizerSpec(vocab_size=300),
                sentence_splitting="lines",
                heldout_fraction=0.2,
                store_dir=str(Path(corpus).parent / "stores"),
            ),
            optimizer=AdamW(learning_rate=1e-3, warmup_steps=1),
            phases=(Phase(until_step=4, seq_length=32, batch_size=4, format=SegmentPairs()),),
            intervals=Intervals(eval_batches=1),
        )
    ]
