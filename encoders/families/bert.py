"""BERT (Devlin et al., 2019, https://arxiv.org/abs/1810.04805), §3 and the released checkpoints.

GELU is exact, as in the code of October 2018 that trained the checkpoints; the later code has the tanh formula.
"""

from dataclasses import replace

from encoders.model.config import Model

BASE = Model(vocab=30_522, embedding=768, hidden=768, layers=12, heads=12, intermediate=3072)
LARGE = replace(BASE, embedding=1024, hidden=1024, layers=24, heads=16, intermediate=4096)

BASE_CASED = replace(BASE, vocab=28_996)
LARGE_CASED = replace(LARGE, vocab=28_996)

# The miniatures (Turc et al., 2019, https://arxiv.org/abs/1908.08962): heads of 64, 4x intermediate layers.
TINY = replace(BASE, embedding=128, hidden=128, layers=2, heads=2, intermediate=512)
MINI = replace(BASE, embedding=256, hidden=256, layers=4, heads=4, intermediate=1024)
SMALL = replace(BASE, embedding=512, hidden=512, layers=4, heads=8, intermediate=2048)
MEDIUM = replace(SMALL, layers=8)

SIZES = {
    "bert-tiny": TINY,
    "bert-mini": MINI,
    "bert-small": SMALL,
    "bert-medium": MEDIUM,
    "bert-base": BASE,
    "bert-large": LARGE,
    "bert-base-cased": BASE_CASED,
    "bert-large-cased": LARGE_CASED,
}
