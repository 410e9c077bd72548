"""BERT's pre-training (Devlin et al., 2019, §3.1 and appendix A.2), every size.

Follows the released code where it differs from the paper: Adam without bias correction, warm-up in place of the
decaying line, random Bs that fill the row, ten masks an example. Two known differences: the whole batch is clipped,
not each replica's share, and the vocabulary is trained here unless `data.vocabulary.path` names the published
vocab.txt. The papers' books are no TFDS data set: name your own text files beside Wikipedia with `data.corpus`.
The miniatures have the same recipe (Turc et al., 2019).
"""

from encoders.data.formats import SegmentPairs
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import bert
from encoders.objectives.masked_lm import Joint
from encoders.objectives.masking import Masking
from encoders.objectives.sentence_pair import NextSentence
from encoders.text.tokenization import Vocabulary
from encoders.training.optimizer import AdamW

PAIRS = SegmentPairs("random", released=True)

experiments = [
    Experiment(
        name=name,
        model=model,
        objective=Joint(Masking(copies=10), NextSentence()),
        data=Data(
            corpus=("tfds:wikipedia/20230601.en",),
            vocabulary=Vocabulary(size=model.vocab, lowercase="cased" not in name, sample=200_000_000),
        ),
        optimizer=AdamW(rate=1e-4, warmup=10_000),
        phases=(
            Phase(until=900_000, length=128, batch=256, format=PAIRS),
            Phase(until=1_000_000, length=512, batch=256, format=PAIRS),
        ),
    )
    for name, model in bert.SIZES.items()
]
