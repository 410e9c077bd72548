"""ALBERT (Lan et al., 2020, https://arxiv.org/abs/1909.11942), table 1, and the README of the released models."""

from dataclasses import replace

from encoders.model.config import Model

BOTH = ("attend", "transform")

BASE = Model(
    vocab=30_000, embedding=128, hidden=768, layers=12, heads=12, intermediate=3072, activation="gelu_tanh", share=BOTH
)
LARGE = replace(BASE, hidden=1024, layers=24, heads=16, intermediate=4096)
XLARGE = replace(BASE, hidden=2048, layers=24, heads=16, intermediate=8192)
# Without dropout from the start; version 2 drops it from all sizes (§4.9 and the README).
XXLARGE = replace(BASE, hidden=4096, layers=12, heads=64, intermediate=16_384, dropout=0.0, attention_dropout=0.0)

NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0)
BASE_V2, LARGE_V2, XLARGE_V2, XXLARGE_V2 = (replace(m, **NO_DROPOUT) for m in (BASE, LARGE, XLARGE, XXLARGE))

SIZES = {
    "albert-base": BASE,
    "albert-large": LARGE,
    "albert-xlarge": XLARGE,
    "albert-xxlarge": XXLARGE,
    "albert-base-v2": BASE_V2,
    "albert-large-v2": LARGE_V2,
    "albert-xlarge-v2": XLARGE_V2,
    "albert-xxlarge-v2": XXLARGE_V2,
}
