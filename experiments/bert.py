"""Pre-training of BERT (Devlin et al., 2019, §3.1 and appendix A.2), all sizes, with those of Turc et al. (2019).

    python launch.py train bert --only bert-base

Cost and score of a whole run: not measured here. A step of BERT-base with 8 rows of 128 takes 7.0 s on one core of an
AMD EPYC (Zen 3) in float32 (`speed.py`). `python launch.py show bert` prints parameters, FLOPs and memory.

This is the released code in the points where the paper differs: Adam without bias correction, warm-up multiplied with
the decaying line, random second segments that fill the row, ten masks an example. Two differences are known. The whole
batch is clipped, not each replica's share; and the vocabulary is trained here unless `data.tokenizer.path` names the
published vocab.txt. The books of the paper are not in TFDS: name text files of your own with `data.corpus`.
"""

from encoders.data.formats import SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import bert
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

PAIRS = SegmentPairs("random", match_released_code=True)

experiments = [
    Experiment(
        name=name,
        model=model,
        objective=MaskedLM(Masking(dupe_factor=10), NextSentencePrediction()),
        data=PretrainingData(
            corpus=("tfds:wikipedia/20230601.en",),
            tokenizer=TokenizerSpec(
                vocab_size=model.vocab_size, lowercase="cased" not in name, train_chars=200_000_000
            ),
        ),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=10_000),
        phases=(
            Phase(until_step=900_000, seq_length=128, batch_size=256, format=PAIRS),
            Phase(until_step=1_000_000, seq_length=512, batch_size=256, format=PAIRS),
        ),
    )
    for name, model in bert.SIZES.items()
]
