"""ALBERT (Lan et al., 2020, https://arxiv.org/abs/1909.11942), table 1, and the README of the released models."""

from dataclasses import replace

from encoders.model.config import EncoderConfig, FamilyConventions

ALL_PARTS = ("attention", "feed_forward")
CONVENTIONS = FamilyConventions("albert", answerability="conditioned_span")

BASE = EncoderConfig(
    vocab_size=30_000,
    embedding_size=128,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    intermediate_size=3072,
    activation="gelu_tanh",
    shared_parts=ALL_PARTS,
    conventions=CONVENTIONS,
)
LARGE = replace(BASE, hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)
XLARGE = replace(BASE, hidden_size=2048, num_layers=24, num_heads=16, intermediate_size=8192)
# Without dropout from the start; version 2 drops it from all sizes (§4.9 and the README).
XXLARGE = replace(
    BASE,
    hidden_size=4096,
    num_layers=12,
    num_heads=64,
    intermediate_size=16_384,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)

NO_DROPOUT = dict(hidden_dropout=0.0, attention_dropout=0.0)
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
