"""RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692), §4 and fairseq's released checkpoints.

Positions start at 2, padding reads entry 1; the table of one segment is what Hugging Face keeps, fairseq has none.
"""

from dataclasses import replace

from encoders.families import bert
from encoders.families.architecture import LAYER_NAMES, SHARED_NAMES, Architecture, tie_decoder
from encoders.model.config import EncoderConfig, FamilyConventions

CONVENTIONS = FamilyConventions("roberta", "tanh", num_separators=2, answerability="classifier")


def to_roberta_config(config: EncoderConfig) -> EncoderConfig:
    """Return `config` with RoBERTa's vocabulary, positions, token types, epsilon, initialiser and conventions."""
    fields = dict(vocab_size=50_265, position_offset=2, num_token_types=1, layer_norm_eps=1e-5, truncated_init=False)
    return replace(config, **fields, conventions=CONVENTIONS)


BASE, LARGE = to_roberta_config(bert.BASE), to_roberta_config(bert.LARGE)

SIZES = {"roberta-base": BASE, "roberta-large": LARGE}

ARCHITECTURE = Architecture(
    name="roberta",
    module_names=(
        *SHARED_NAMES,
        *LAYER_NAMES,
        ("tokens/dense", "lm_head.dense"),
        ("tokens/norm", "lm_head.layer_norm"),
        ("tokens", "lm_head"),
        ("pooler/dense", "roberta.pooler.dense"),
        ("classes/dense", "classifier.dense"),
        ("classes/out", "classifier.out_proj"),
        ("tags", "classifier"),
    ),
    tied_tensors=tie_decoder("lm_head", "roberta"),
    classifier_head="tanh",
    fixed_fields={"truncated_init": False, "conventions": CONVENTIONS},
    hf_defaults={"vocab_size": 50_265},
    gelu_heads=("tokens",),
    positions_start_after_pad=True,
)
