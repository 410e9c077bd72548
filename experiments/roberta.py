"""RoBERTa's pre-training (Liu et al., 2019, §3.1 and table 9), both sizes.

Follows fairseq where the paper is silent: <s> and </s> may be chosen, the number of predictions is rounded at random,
a random token is never a special one, every parameter decays. The paper's 160 GB are five corpora of which TFDS has
Wikipedia: name the others as text files with `data.corpus`. 8,192 rows a batch fit few machines at once: split them
with `accumulate`, which changes no loss.
"""

from encoders.data.formats import FullSentences
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import roberta
from encoders.objectives.masked_lm import Joint
from encoders.objectives.masking import Masking
from encoders.text.tokenization import Vocabulary
from encoders.training.optimizer import AdamW

DYNAMIC = Masking(copies=None, special=True, rounding="random", replacements="words")
PEAKS = {"roberta-base": (6e-4, 24_000), "roberta-large": (4e-4, 30_000)}  # rate, warm-up

experiments = [
    Experiment(
        name=name,
        model=roberta.SIZES[name],
        objective=Joint(DYNAMIC),
        data=Data(
            corpus=("tfds:wikipedia/20230601.en",),
            vocabulary=Vocabulary(kind="bpe", size=roberta.BASE.vocab, sample=200_000_000),
        ),
        optimizer=AdamW(
            rate=rate, warmup=warmup, betas=(0.9, 0.98), correction=True, clip=None, schedule="peak", exclude=()
        ),
        phases=(Phase(until=500_000, length=512, batch=8192, format=FullSentences()),),
    )
    for name, (rate, warmup) in PEAKS.items()
]
