"""BERT (Devlin et al., 2019, https://arxiv.org/abs/1810.04805), §3 and the released checkpoints.

GELU is exact, as in the code of October 2018 that trained the checkpoints; the later code has the tanh formula.
"""

from dataclasses import replace

from encoders.families.architecture import LAYER_NAMES, SHARED_NAMES, Architecture, tie_decoder
from encoders.model.config import EncoderConfig, FamilyConventions

CONVENTIONS = FamilyConventions()  # which is also the default of a config

BASE = EncoderConfig(
    vocab_size=30_522, embedding_size=768, hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072
)
LARGE = replace(BASE, embedding_size=1024, hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)

# The miniatures (Turc et al., 2019, https://arxiv.org/abs/1908.08962): heads of 64, 4x intermediate layers.
TINY = replace(BASE, embedding_size=128, hidden_size=128, num_layers=2, num_heads=2, intermediate_size=512)
MINI = replace(BASE, embedding_size=256, hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024)
SMALL = replace(BASE, embedding_size=512, hidden_size=512, num_layers=4, num_heads=8, intermediate_size=2048)
MEDIUM = replace(SMALL, num_layers=8)

SIZES = {
    "bert-tiny": TINY,
    "bert-mini": MINI,
    "bert-small": SMALL,
    "bert-medium": MEDIUM,
    "bert-base": BASE,
    "bert-large": LARGE,
    "bert-base-cased": replace(BASE, vocab_size=28_996),
    "bert-large-cased": replace(LARGE, vocab_size=28_996),
}

ARCHITECTURE = Architecture(
    name="bert",
    module_names=(
        *SHARED_NAMES,
        *LAYER_NAMES,
        ("tokens/dense", "cls.predictions.transform.dense"),
        ("tokens/norm", "cls.predictions.transform.LayerNorm"),
        ("tokens", "cls.predictions"),
        ("pooler/dense", "bert.pooler.dense"),
        ("pair/out", "cls.seq_relationship"),
        ("classes/out", "classifier"),
        ("tags", "classifier"),
    ),
    tied_tensors=tie_decoder("cls.predictions", "bert"),
    classifier_head="pooled",
    sentence_task="nsp",
)
