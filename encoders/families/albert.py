"""ALBERT (Lan et al., 2020, https://arxiv.org/abs/1909.11942), table 1, and the README of the released models."""

from dataclasses import replace

from encoders.families import bert
from encoders.families.architecture import LAYER_MODULES, SHARED_NAMES, Architecture, tie_decoder
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

ALBERT_LAYER_NAMES = tuple(
    (f"encoder/shared/{name}", "albert.encoder.albert_layer_groups.{}.albert_layers.0." + hf)
    for name, _, hf in LAYER_MODULES
)

ARCHITECTURE = Architecture(
    name="albert",
    module_names=(
        *SHARED_NAMES,
        ("encoder/project", "albert.encoder.embedding_hidden_mapping_in"),
        *ALBERT_LAYER_NAMES,
        ("tokens/dense", "predictions.dense"),
        ("tokens/norm", "predictions.LayerNorm"),
        ("tokens", "predictions"),
        ("pooler/dense", "albert.pooler"),
        ("pair/out", "sop_classifier.classifier"),
        ("classes/out", "classifier"),
        ("tags", "classifier"),
    ),
    tied_tensors=tie_decoder("predictions", "albert"),
    classifier_head="pooled",
    classifier_dropout_field=("classifier_dropout_prob", 0.1),
    sentence_task="sop",
    # It projects e → d also where the widths are equal, unlike Google's code.
    fixed_fields={"shared_parts": ALL_PARTS, "always_project": True, "conventions": CONVENTIONS},
    extra_fields=(("embedding_size", "embedding_size"), ("num_groups", "num_hidden_groups")),
    hf_defaults={
        "vocab_size": 30_000,
        "embedding_size": 128,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16_384,
        "num_hidden_groups": 1,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
)
