"""ALBERT (Lan et al., 2020, https://arxiv.org/abs/1909.11942), table 1, and the README of the released models."""

from dataclasses import replace

from encoders.families import bert
from encoders.model.config import FamilyConventions

ALL_PARTS = ("attention", "feed_forward")
CONVENTIONS = FamilyConventions("albert", answerability="conditioned_span")
NO_DROPOUT = dict(hidden_dropout=0.0, attention_dropout=0.0)

# Hidden size, layers, heads and intermediate size of BERT-base.
BASE = replace(
    bert.BASE,
    vocab_size=30_000,
    embedding_size=128,
    activation="gelu_tanh",
    shared_parts=ALL_PARTS,
    conventions=CONVENTIONS,
)
LARGE = replace(BASE, hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)
XLARGE = replace(BASE, hidden_size=2048, num_layers=24, num_heads=16, intermediate_size=8192)
# Without dropout from the start; version 2 drops it from all sizes (§4.9 and the README).
XXLARGE = replace(BASE, hidden_size=4096, num_heads=64, intermediate_size=16_384, **NO_DROPOUT)

VERSION_1 = {"albert-base": BASE, "albert-large": LARGE, "albert-xlarge": XLARGE, "albert-xxlarge": XXLARGE}
SIZES = VERSION_1 | {f"{name}-v2": replace(config, **NO_DROPOUT) for name, config in VERSION_1.items()}
