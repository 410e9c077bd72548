"""ELECTRA (Clark et al., 2020, https://arxiv.org/abs/2003.10555), table 6, and the released configurations.

Each size is its discriminator; `GENERATOR_WIDTHS` has the width of its generator as a fraction of its own.
The released small checkpoint is small++, whose generator is as wide as its discriminator.
"""

from dataclasses import replace

import flax.linen as nn

from encoders.families import bert
from encoders.families.architecture import LAYER_NAMES, SHARED_NAMES, Architecture
from encoders.model import layers
from encoders.model.config import EncoderConfig, FamilyConventions

CONVENTIONS = FamilyConventions("electra", "linear", answerability="electra_conditioned_span")


class ElectraEmbeddings(layers.Embeddings):
    """As BERT's; the projection to the hidden width has TensorFlow's default (Glorot) initialiser."""

    projection_init = staticmethod(nn.initializers.glorot_uniform())


def to_electra_config(config: EncoderConfig) -> EncoderConfig:
    """Return `config` with ELECTRA's embedding block and conventions."""
    return replace(config, embeddings=ElectraEmbeddings, conventions=CONVENTIONS)


SMALL = to_electra_config(replace(bert.BASE, embedding_size=128, hidden_size=256, num_heads=4, intermediate_size=1024))
BASE, LARGE = to_electra_config(bert.BASE), to_electra_config(bert.LARGE)

SIZES = {"electra-small": SMALL, "electra-small++": SMALL, "electra-base": BASE, "electra-large": LARGE}
GENERATOR_WIDTHS = {"electra-small": 1 / 4, "electra-small++": 1.0, "electra-base": 1 / 3, "electra-large": 1 / 4}

ARCHITECTURE = Architecture(
    name="electra",
    module_names=(
        *SHARED_NAMES,
        ("encoder/project", "electra.embeddings_project"),
        *LAYER_NAMES,
        ("tokens/dense", "generator_predictions.dense"),
        ("tokens/norm", "generator_predictions.LayerNorm"),
        ("tokens", "generator_lm_head"),
        ("replaced/dense", "discriminator_predictions.dense"),
        ("replaced/out", "discriminator_predictions.dense_prediction"),
        ("classes/dense", "classifier.dense"),
        ("classes/out", "classifier.out_proj"),
        ("tags", "classifier"),
    ),
    tied_tensors=(("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),),
    classifier_head="gelu",
    fixed_fields={"embeddings": ElectraEmbeddings, "conventions": CONVENTIONS},
    extra_fields=(("embedding_size", "embedding_size"),),
    hf_defaults={"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    gelu_heads=("tokens",),
)
