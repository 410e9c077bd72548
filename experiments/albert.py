"""ALBERT's pre-training (Lan et al., 2020, §4.1), four sizes, versions 1 and 2.

Follows the paper in 15 % of the tokens predicted: the released code's default limit of 20 at length 512 is 3.9 %.
Follows the corrected format in sentence order: the released code gives chunks of one sentence a random B, which is
next-sentence prediction. LAMB as in the released code. Version 2 has no dropout and trains longer (README).
"""

from encoders.data.formats import SegmentPairs
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert
from encoders.objectives.masked_lm import Joint
from encoders.objectives.masking import Masking
from encoders.objectives.sentence_pair import SentenceOrder
from encoders.text.tokenization import Vocabulary
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
        objective=Joint(Masking(copies=40, unit="word", ngrams=3), SentenceOrder()),
        data=Data(
            corpus=("tfds:wikipedia/20230601.en",),
            vocabulary=Vocabulary(kind="unigram", size=model.vocab, sample=200_000_000),
        ),
        optimizer=Lamb(rate=1.76e-3, warmup=3125),
        phases=(Phase(until=STEPS[name], length=512, batch=4096, format=SegmentPairs("swapped")),),
    )
    for name, model in albert.SIZES.items()
]
