"""Hugging Face's checkpoints of each family: names of tensors, fields of config.json, model classes.

A table pairs modules of our parameter tree with modules of theirs; `{}` is the index of a layer, or of a group
of layers that share parameters. `LEAF_NAMES` maps the leaves of a module; dense kernels are transposed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from reprlib import repr as shorten
from typing import Any

from encoders.families import albert, electra, roberta
from encoders.model.config import EncoderConfig
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.training.optimizer import is_stacked
from encoders.utils.errors import UserError

LEAF_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
ACTIVATION_NAMES = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

# Field of `EncoderConfig`, field of config.json, and the default of transformers.
CONFIG_FIELDS = (
    ("vocab_size", "vocab_size", 30_522),
    ("hidden_size", "hidden_size", 768),
    ("num_layers", "num_hidden_layers", 12),
    ("num_heads", "num_attention_heads", 12),
    ("intermediate_size", "intermediate_size", 3072),
    ("max_positions", "max_position_embeddings", 512),
    ("num_token_types", "type_vocab_size", 2),
    ("hidden_dropout", "hidden_dropout_prob", 0.1),
    ("attention_dropout", "attention_probs_dropout_prob", 0.1),
    ("layer_norm_eps", "layer_norm_eps", 1e-12),
    ("init_std", "initializer_range", 0.02),
    ("activation", "hidden_act", "gelu"),
)
# Other values change what the network computes, and the encoder here supports none of them.
REQUIRED_VALUES = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "inner_group_num": (1,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
# Buffers without information: positions that count up, and token types that are all zero.
BUFFER_PATTERN = r"(^|\.)embeddings\.(position_ids|token_type_ids)$"

SHARED_NAMES = (
    ("spans", "qa_outputs"),
    ("encoder/embed/word", "{root}.embeddings.word_embeddings"),
    ("encoder/embed/position", "{root}.embeddings.position_embeddings"),
    ("encoder/embed/segment", "{root}.embeddings.token_type_embeddings"),
    ("encoder/embed/norm", "{root}.embeddings.LayerNorm"),
)
# Module of a layer here, in transformers, and in transformers' ALBERT.
LAYER_MODULES = (
    ("attend/query", "attention.self.query", "attention.query"),
    ("attend/key", "attention.self.key", "attention.key"),
    ("attend/value", "attention.self.value", "attention.value"),
    ("attend/out", "attention.output.dense", "attention.dense"),
    ("attend/norm", "attention.output.LayerNorm", "attention.LayerNorm"),
    ("transform/up", "intermediate.dense", "ffn"),
    ("transform/down", "output.dense", "ffn_output"),
    ("transform/norm", "output.LayerNorm", "full_layer_layer_norm"),
)
LAYER_NAMES = tuple((f"encoder/layers/{name}", "{root}.encoder.layer.{}." + hf) for name, hf, _ in LAYER_MODULES)
ALBERT_LAYER_NAMES = tuple(
    (f"encoder/shared/{name}", "albert.encoder.albert_layer_groups.{}.albert_layers.0." + hf)
    for name, _, hf in LAYER_MODULES
)


def tie_decoder(head: str, root: str) -> tuple[tuple[str, str], ...]:
    """Return rows of (copy, original) for a masked-token head that repeats its bias and the word table."""
    table = f"{root}.embeddings.word_embeddings.weight"
    return (f"{head}.decoder.weight", table), (f"{head}.decoder.bias", f"{head}.bias")


@dataclass(frozen=True)
class Architecture:
    """One model type of transformers.

    `module_names` has rows of (our module, their module). `tied_tensors` has rows of (copy, original); a file may omit
    the copy. `fixed_fields` are fields of `EncoderConfig` that every model of the type shares. `hf_defaults` are
    defaults of config.json that differ from `CONFIG_FIELDS`. `classifier_head` is the value of `Classification.head`
    that computes its classifier. `classifier_dropout_field` is that head's dropout rate in config.json and its default;
    None is the hidden dropout.
    """

    name: str
    module_names: tuple[tuple[str, str], ...]
    tied_tensors: tuple[tuple[str, str], ...]
    classifier_head: str
    classifier_dropout_field: tuple[str, float | None] = ("classifier_dropout", None)
    sentence_task: NextSentencePrediction | SentenceOrderPrediction | None = None  # of the published pair head
    fixed_fields: dict[str, Any] = field(default_factory=dict)
    extra_fields: tuple[tuple[str, str], ...] = ()  # rows of `CONFIG_FIELDS` that this type adds, without a default
    hf_defaults: dict[str, Any] = field(default_factory=dict)
    gelu_heads: tuple[str, ...] = ()  # heads that have exact GELU under any hidden_act
    positions_start_after_pad: bool = False  # as in fairseq

    @property
    def model_classes(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        """Rows of (heads beside the encoder, class of transformers that holds them)."""
        known = {module.partition("/")[0] for module, _ in self.module_names}
        classifier = ("pooler", "classes") if self.classifier_head == "pooled" else ("classes",)
        rows = (
            (("tokens", "pooler", "pair"), "ForPreTraining"),
            (("replaced",), "ForPreTraining"),
            (("tokens",), "ForMaskedLM"),
            (classifier, "ForSequenceClassification"),
            (("tags",), "ForTokenClassification"),
            (("spans",), "ForQuestionAnswering"),
            (("pooler",), "Model"),
            ((), "Model"),
        )
        return tuple((heads, f"{self.name.capitalize()}{suffix}") for heads, suffix in rows if known.issuperset(heads))

    def find_hf_leaf(self, path: str) -> tuple[str, str] | None:
        """Return their name of the leaf at `path` of our tree, with `{}` for the layer, and the kind of leaf."""
        module, _, leaf = path.rpartition("/")
        hf_module = dict(self.module_names).get(module)
        return None if hf_module is None else (f"{hf_module.replace('{root}', self.name)}.{LEAF_NAMES[leaf]}", leaf)

    def list_hf_tensors(self, path: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        """Return names and shapes of their tensors for the leaf at `path` of our tree, one a layer."""
        name, kind = self.find_hf_leaf(path) or (None, None)
        if name is None:
            return []
        num_layers, layer_shape = (shape[0], shape[1:]) if is_stacked(path) else (1, shape)
        hf_shape = layer_shape[::-1] if kind == "kernel" else layer_shape
        return [(name.format(layer), hf_shape) for layer in range(num_layers)]

    def find_top_module(self, tensor_name: str) -> str | None:
        """Return the top-level module of our tree that holds their tensor, such as "encoder" or "pooler"."""
        for our_module, hf_module in self.module_names:
            pattern = re.escape(hf_module.replace("{root}", self.name)).replace(r"\{\}", r"\d+")
            if re.fullmatch(rf"{pattern}\.(weight|bias)", tensor_name):
                return our_module.partition("/")[0]
        return None

    def list_config_fields(self) -> tuple[tuple[str, str, Any], ...]:
        """Return the rows of `CONFIG_FIELDS` for this type: our field, their field, and its default."""
        rows = (*CONFIG_FIELDS, *((name, hf_name, None) for name, hf_name in self.extra_fields))
        return tuple((name, hf_name, self.hf_defaults.get(hf_name, default)) for name, hf_name, default in rows)

    def read_encoder_config(self, hf_config: dict) -> EncoderConfig:
        """Return the encoder that a config.json describes. Raises `ValueError` for a value that is not supported."""
        for name, accepted in REQUIRED_VALUES.items():
            if hf_config.get(name, accepted[0]) not in accepted:
                raise UserError(f"{name}={shorten(hf_config[name])} is not supported; only {accepted[0]!r} is")
        declared_types = {f.name: f.type for f in fields(EncoderConfig)}
        values = {}
        for name, hf_name, default in self.list_config_fields():
            values[name] = hf_config.get(hf_name, default)
            check_number_or_text(hf_name, values[name], declared_types[name].removesuffix(" | None"))
        if values["activation"] not in ACTIVATION_NAMES:
            raise UserError(f"hidden_act={shorten(values['activation'])} is not one of {', '.join(ACTIVATION_NAMES)}")
        values["activation"] = ACTIVATION_NAMES[values["activation"]]
        values = {"embedding_size": values["hidden_size"]} | values | self.fixed_fields
        if self.positions_start_after_pad:
            pad_id = hf_config.get("pad_token_id", 1)
            if type(pad_id) is not int or pad_id < 0:
                raise UserError(f"pad_token_id={pad_id!r} is not a token id; it must be an integer from 0")
            values["position_offset"] = self.get_position_offset(pad_id)
            values["max_positions"] -= values["position_offset"]
        return EncoderConfig(**values)

    def get_position_offset(self, pad_id: int) -> int:
        """Return the row of the position table that the first token reads."""
        return pad_id + 1 if self.positions_start_after_pad else 0

    def list_config_differences(self, config: EncoderConfig, pad_id: int) -> list[str]:
        """Return the fields of `config` that this type computes otherwise, as name=value.

        Raises `ValueError` as `read_encoder_config` does.
        """
        hf_config = self.build_hf_config(config) | {"pad_token_id": pad_id}
        read_back = self.read_encoder_config(hf_config).collect_computation_fields()
        wanted = config.collect_computation_fields()
        return [f"{name}={value!r}" for name, value in wanted.items() if read_back[name] != value]

    def build_hf_config(self, config: EncoderConfig) -> dict:
        """Return the fields of config.json for an encoder."""
        hf_config = {hf_name: getattr(config, name) for name, hf_name, _ in self.list_config_fields()}
        hf_names = {name: hf_name for hf_name, name in reversed(ACTIVATION_NAMES.items())}
        hf_config["hidden_act"] = hf_names[config.activation]
        hf_config["max_position_embeddings"] += config.position_offset
        return hf_config


def check_number_or_text(hf_name: str, value: Any, declared_type: str) -> None:
    """Check a value of config.json by the type of our field. Raises `ValueError`."""
    accepted_types = {"int": int, "float": int | float}.get(declared_type, str)
    if not isinstance(value, accepted_types) or isinstance(value, bool):
        raise UserError(f"{hf_name}={shorten(value)} is not a {'text' if accepted_types is str else 'number'}")
    minimum = 1 if declared_type == "int" else 0
    if accepted_types is not str and not minimum <= value < 2**31:  # JAX indexes with 32-bit integers
        raise UserError(f"{hf_name}={value!r} must be at least {minimum} and below 2**31")


def has_different_groups(config: EncoderConfig) -> bool:
    """Return whether transformers, which divides in floating point, puts a layer into another group."""
    num_layers, num_groups = config.num_layers, config.num_groups
    return any(int(i / (num_layers / num_groups)) != i * num_groups // num_layers for i in range(num_layers))


BERT = Architecture(
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
    sentence_task=NextSentencePrediction(),
)

ROBERTA = Architecture(
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
    fixed_fields={"truncated_init": False, "conventions": roberta.CONVENTIONS},
    hf_defaults={"vocab_size": 50_265},
    gelu_heads=("tokens",),
    positions_start_after_pad=True,
)

ALBERT = Architecture(
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
    sentence_task=SentenceOrderPrediction(),
    # It projects e → d also where the widths are equal, unlike Google's code.
    fixed_fields={"shared_parts": albert.ALL_PARTS, "always_project": True, "conventions": albert.CONVENTIONS},
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

ELECTRA = Architecture(
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
    fixed_fields={"embeddings": electra.ElectraEmbeddings, "conventions": electra.CONVENTIONS},
    extra_fields=(("embedding_size", "embedding_size"),),
    hf_defaults={"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    gelu_heads=("tokens",),
)

ARCHITECTURES = {architecture.name: architecture for architecture in (BERT, ROBERTA, ALBERT, ELECTRA)}
