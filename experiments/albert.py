"""Pre-training of ALBERT (Lan et al., 2020, §4.1), four sizes, versions 1 and 2.

    python launch.py train albert --only albert-base

Cost and score: not measured here; `python launch.py show albert` prints parameters, FLOPs and memory of every size.

15 % of the tokens are predicted, as in the paper; the released code's default limit of 20 at length 512 is 3.9 %.
Sentence order has the corrected format; the released code gives a chunk of one sentence a random second segment,
which is next-sentence prediction. LAMB is the released code's. Version 2 trains longer, without dropout.
"""

from encoders.data.formats import SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.sentence_pair import SentenceOrderPrediction
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import Lamb

STEPS = {name: 125_000 for name in albert.SIZES} | {
    "albert-base-v2": 10_000_000,
    "albert-large-v2": 3_000_000,
    "albert-xlarge-v2": 3_000_000,
    "albert-xxlarge-v2": 3_000_000,
}

experiments = [
    Experiment(
        name=name,
        model=model,
        objective=MaskedLM(Masking(dupe_factor=40, unit="word", max_ngram=3), SentenceOrderPrediction()),
        data=PretrainingData(
            corpus=("tfds:wikipedia/20230601.en",),
            tokenizer=TokenizerSpec(kind="unigram", vocab_size=model.vocab_size, train_chars=200_000_000),
        ),
        optimizer=Lamb(learning_rate=1.76e-3, warmup_steps=3125),
        phases=(Phase(until_step=STEPS[name], seq_length=512, batch_size=4096, format=SegmentPairs("swapped")),),
    )
    for name, model in albert.SIZES.items()
]
