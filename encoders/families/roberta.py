"""RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692), §4 and fairseq's released checkpoints.

Positions start at 2, padding reads entry 1; the table of one segment is what Hugging Face keeps, fairseq has none.
"""

from dataclasses import replace

from encoders.families import bert
from encoders.model.config import Model

NUMBERS = dict(vocab=50_265, position_offset=2, segments=1, norm_epsilon=1e-5, truncated=False)


def of(model: Model) -> Model:
    """`model` with RoBERTa's vocabulary, positions, segments, epsilon and initialiser."""
    return replace(model, **NUMBERS)


BASE, LARGE = of(bert.BASE), of(bert.LARGE)

SIZES = {"roberta-base": BASE, "roberta-large": LARGE}
