"""Guide: a family. An encoder with a gated feed-forward network (GEGLU, Shazeer, 2020, https://arxiv.org/abs/2002.05202).

    python launch.py show experiments/guides/family.py
    python launch.py train experiments/guides/family.py

A family is one file: the part that no other family has, its sizes, and its fine-tuning conventions.
Cost and score: not measured here beyond the test that trains it for a few steps.
"""

from dataclasses import replace

import flax.linen as nn

import encoders
from encoders.families import bert
from encoders.model.config import FamilyConventions
from encoders.model.layers import ACTIVATIONS, Dropout, FeedForward, make_dense, make_layer_norm


@encoders.register
class GatedFeedForward(FeedForward):
    """Feed-forward network whose inner features are gated by a second projection, residual and layer norm after it."""

    @nn.compact
    def __call__(self, x, context, train):
        config = self.config
        inner = ACTIVATIONS[config.activation](make_dense(config, config.intermediate_size, "up")(x))
        gate = make_dense(config, config.intermediate_size, "gate")(x)
        out = make_dense(config, config.hidden_size, "down")(inner * gate)
        return make_layer_norm(config, "norm")(x + Dropout(config.hidden_dropout)(out, train))


CONVENTIONS = FamilyConventions("gated-bert", classifier_head="linear")

# Two thirds of BERT's inner width: three matrices then have as many parameters as its two.
BASE = replace(bert.BASE, feed_forward=GatedFeedForward, intermediate_size=2048, conventions=CONVENTIONS)
LARGE = replace(bert.LARGE, feed_forward=GatedFeedForward, intermediate_size=2736, conventions=CONVENTIONS)
SIZES = {"gated-bert-base": BASE, "gated-bert-large": LARGE}

first = encoders.load_experiments("first")["first"]
experiments = [
    replace(first, name="gated-bert-tiny", model=replace(first.model, feed_forward=GatedFeedForward)),
]
