"""ELECTRA (Clark et al., 2020, https://arxiv.org/abs/2003.10555), table 6, and the released configurations.

Each size is its discriminator; `WIDTHS` holds the width of its generator as a fraction of its own.
The released small checkpoint is small++, whose generator is as wide as its discriminator.
"""

from dataclasses import replace

import flax.linen as nn

from encoders.families import bert
from encoders.model import layers
from encoders.model.config import Model, narrowed


class ElectraEmbeddings(layers.Embeddings):
    """As BERT's; the projection to the hidden width has TensorFlow's default (Glorot) initialiser."""

    project_init = staticmethod(nn.initializers.glorot_uniform())


def of(model: Model) -> Model:
    """`model` with ELECTRA's embedding block."""
    return replace(model, embed=ElectraEmbeddings)


SMALL = of(replace(bert.BASE, embedding=128, hidden=256, heads=4, intermediate=1024))
BASE, LARGE = of(bert.BASE), of(bert.LARGE)

SIZES = {"electra-small": SMALL, "electra-small++": SMALL, "electra-base": BASE, "electra-large": LARGE}
WIDTHS = {"electra-small": 1 / 4, "electra-small++": 1.0, "electra-base": 1 / 3, "electra-large": 1 / 4}
GENERATORS = {name: narrowed(SIZES[name], width) for name, width in WIDTHS.items()}
