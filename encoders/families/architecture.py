"""Hugging Face's checkpoints of a family: names of tensors, fields of config.json, model classes.

A table pairs modules of our parameter tree with modules of theirs; `{}` is the index of a layer, or of a group
of layers that share parameters. `LEAF_NAMES` maps the leaves of a module; dense kernels are transposed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from reprlib import repr as shorten
from typing import Any, Literal

from encoders.model.config import EncoderConfig
from encoders.model.encoder import is_stacked
from encoders.utils.errors import UserError

LEAF_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
ACTIVATION_NAMES = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}

# Field of `EncoderConfig`, field of config.json, and the default of transformers.
ConfigRows = tuple[tuple[str, str, Any], ...]
CONFIG_FIELDS: ConfigRows = (
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


def tie_decoder(head: str, root: str) -> tuple[tuple[str, str], ...]:
    """Return rows of (copy, original) for a masked-token head that repeats its bias and the word table."""
    table = f"{root}.embeddings.word_embeddings.weight"
    return (f"{head}.decoder.weight", table), (f"{head}.decoder.bias", f"{head}.bias")


@dataclass(frozen=True)
class Architecture:
    """One model type of transformers.

    `module_names` has rows of (our module, their module); theirs may be a function of layer and number of layers.
    `tied_tensors` has rows of (copy, original); a file may omit the copy. `root` is the prefix of the encoder's names,
    by default `name`. `former_names` has rows of (regex of a tensor's name, its replacement) for files of another
    layout. Tensors whose names match `unread_tensors` have no place in our models, and an import names them.
    `replaced_class` is the suffix of the class that holds the head of replaced tokens. `config_fields`, `read_nested`
    and `write_nested` say which fields of config.json are those of `config_class`. `fixed_fields` are fields that every
    model of the type shares. `hf_defaults` are defaults of config.json that differ from `config_fields`.
    `classifier_head` is the value of `Classification.head` that computes its classifier, `token_classifier_head` that
    of `TokenClassification.token_head`. `classifier_dropout_field` is the dropout rate of that head in config.json and
    its default; None is the hidden dropout. `kept_heads` are dense layers that every class of the type holds beside its
    encoder, with a function of the config for their numbers of inputs and outputs: no objective here trains them, and
    an export has them where an import had them.
    """

    name: str
    module_names: tuple[tuple[str, str | Callable[[int, int], str]], ...]
    tied_tensors: tuple[tuple[str, str], ...]
    classifier_head: str
    token_classifier_head: Literal["linear", "pooled"] = "linear"
    classifier_dropout_field: tuple[str, float | None] = ("classifier_dropout", None)
    sentence_task: Literal["nsp", "sop"] | None = None  # of the published pair head
    kept_heads: dict[str, Callable[[Any], tuple[int, int]]] = field(default_factory=dict)
    replaced_class: str = "ForPreTraining"
    former_names: tuple[tuple[str, str], ...] = ()
    unread_tensors: str = r"(?!)"
    root: str = ""
    class_prefix: str = ""  # of its classes, by default `name` with a capital
    class_names: dict[str, str] = field(default_factory=dict)  # of classes that are named otherwise, by their suffix
    config_class: type[EncoderConfig] = EncoderConfig
    config_fields: ConfigRows = CONFIG_FIELDS
    required_values: dict[str, tuple] = field(default_factory=lambda: REQUIRED_VALUES)
    read_nested: Callable[[dict], dict] = lambda hf_config: {}  # fields of ours from lists and nested keys of theirs
    write_nested: Callable[[Any], dict] = lambda config: {}
    fixed_fields: dict[str, Any] = field(default_factory=dict)
    extra_fields: tuple[tuple[str, str], ...] = ()  # rows of `config_fields` that this type adds, without a default
    hf_defaults: dict[str, Any] = field(default_factory=dict)
    token_id_fields: tuple[tuple[str, str], ...] = ()  # rows of (field of config.json, field of `VocabInfo`)
    gelu_heads: tuple[str, ...] = ()  # heads that have exact GELU under any hidden_act
    positions_start_after_pad: bool = False  # as in fairseq
    buffers: str = BUFFER_PATTERN  # regex of tensors that are no parameters
    read_buffers: Callable[[Any, dict], Any] = lambda config, tensors: config  # the config that all tensors agree with
    write_buffers: Callable[[Any], dict] = lambda config: {}  # arrays by name that a file has beside the parameters

    @property
    def model_classes(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        """Rows of (heads beside the encoder, class of transformers that holds them)."""
        known = {module.partition("/")[0] for module, _ in self.module_names}
        classifier = ("pooler", "classes") if self.classifier_head == "pooled" else ("classes",)
        pooled = ("pooler",) if self.token_classifier_head == "pooled" else ()
        pooler_name = self.name_hf_module(dict(self.module_names).get("pooler/dense", ""), 0, 1)
        rows = (
            (("tokens", "pooler", "pair"), "ForPreTraining"),
            (("replaced",), self.replaced_class),
            (("tokens",), "ForMaskedLM"),
            (classifier, "ForSequenceClassification"),
            ((*pooled, "tags"), "ForTokenClassification"),
            ((*pooled, "spans"), "ForQuestionAnswering"),
            *([(("pooler",), "Model")] if pooler_name.startswith(f"{self.root or self.name}.") else []),
            ((), "Model"),
        )
        prefix = self.class_prefix or self.name.capitalize()
        name_class = lambda suffix: self.class_names.get(suffix, f"{prefix}{suffix}")
        return tuple((heads, name_class(suffix)) for heads, suffix in rows if known.issuperset(heads))

    def name_hf_module(self, hf_module: str | Callable[[int, int], str], layer: int, num_layers: int) -> str:
        name = hf_module(layer, num_layers) if callable(hf_module) else hf_module
        return name.replace("{root}", self.root or self.name).replace("{}", str(layer))

    def find_hf_leaf(self, path: str, layer: int = 0, num_layers: int = 1) -> tuple[str, str] | None:
        """Return their name of the leaf at `path` of our tree, in one of its layers, and the kind of leaf."""
        module, _, leaf = path.rpartition("/")
        hf_module = dict(self.module_names).get(module)
        if hf_module is None:
            return None
        return f"{self.name_hf_module(hf_module, layer, num_layers)}.{LEAF_NAMES[leaf]}", leaf

    def list_hf_tensors(self, path: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        """Return names and shapes of their tensors for the leaf at `path` of our tree, one a layer."""
        num_layers, layer_shape = (shape[0], shape[1:]) if is_stacked(path) else (1, shape)
        leaves = [self.find_hf_leaf(path, layer, num_layers) for layer in range(num_layers)]
        return [(name, layer_shape[::-1] if kind == "kernel" else layer_shape) for name, kind in filter(None, leaves)]

    def list_top_modules(self, tensor_name: str) -> list[str]:
        """Return the top-level modules of our tree that may hold their tensor, such as "encoder" or "pooler"."""
        module, _, leaf = tensor_name.rpartition(".")
        module = re.sub(r"\.\d+\.", ".1.", module, count=1) if leaf in LEAF_NAMES.values() else ""
        return self.top_modules.get(module, [])

    @cached_property
    def top_modules(self) -> dict[str, list[str]]:
        """The top-level modules of our tree, by the name that their module has where it is of layer 1."""
        examples = ((1, 3), (0, 3), (1, 2))  # layers whose names may have the number 1, or be those of the last
        found: dict[str, dict] = {}
        for our_module, hf_module in self.module_names:
            for example in examples:
                found.setdefault(self.name_hf_module(hf_module, *example), {})[our_module.partition("/")[0]] = None
        return {name: list(modules) for name, modules in found.items()}

    def infer_heads(self, tensor_names: Iterable[str], class_names: Iterable[str]) -> frozenset[str]:
        """Return the heads whose tensors these are.

        A name that several heads have means that of the named class, or else of the first class that holds all tensors.
        """
        found = [self.list_top_modules(name) for name in tensor_names]
        named = [heads for heads, class_name in self.model_classes if class_name in class_names]
        covers = lambda heads: all(
            not modules or {"encoder", *self.kept_heads, *heads} & {*modules} for modules in found
        )
        heads = next(iter([*named, *(heads for heads, _ in self.model_classes if covers(heads))]), ())
        choose = lambda modules: next((module for module in modules if module in heads), modules[0])
        return frozenset(choose(modules) for modules in found if modules) - {"encoder"}

    def list_config_fields(self) -> tuple[tuple[str, str, Any], ...]:
        """Return the rows of `CONFIG_FIELDS` for this type: our field, their field, and its default."""
        rows = (*self.config_fields, *((name, hf_name, None) for name, hf_name in self.extra_fields))
        return tuple((name, hf_name, self.hf_defaults.get(hf_name, default)) for name, hf_name, default in rows)

    def read_encoder_config(self, hf_config: dict) -> EncoderConfig:
        """Return the encoder that a config.json describes. Raises `ValueError` for a value that is not supported."""
        for name, accepted in self.required_values.items():
            value = hf_config.get(name, self.hf_defaults.get(name, accepted[0]))
            if value not in accepted:
                raise UserError(f"{name}={shorten(value)} is not supported; only {accepted[0]!r} is")
        declared_types = {f.name: f.type for f in fields(self.config_class)}
        values = {}
        for name, hf_name, default in self.list_config_fields():
            values[name] = hf_config.get(hf_name, default)
            check_number_or_text(hf_name, values[name], declared_types[name].removesuffix(" | None"))
            if name == "activation":
                if values[name] not in ACTIVATION_NAMES:
                    known = ", ".join(ACTIVATION_NAMES)
                    raise UserError(f"{hf_name}={shorten(values[name])} is not one of {known}")
                values[name] = ACTIVATION_NAMES[values[name]]
        values |= self.read_nested(hf_config) | self.fixed_fields
        if self.positions_start_after_pad:
            pad_id = hf_config.get("pad_token_id", 1)
            if type(pad_id) is not int or pad_id < 0:
                raise UserError(f"pad_token_id={pad_id!r} is not a token id; it must be an integer from 0")
            values["position_offset"] = self.get_position_offset(pad_id)
            values["max_positions"] -= values["position_offset"]
        return self.config_class(**values)

    def get_position_offset(self, pad_id: int) -> int:
        """Return the row of the position table that the first token reads."""
        return pad_id + 1 if self.positions_start_after_pad else 0

    def list_config_differences(self, config: EncoderConfig, pad_id: int) -> list[str]:
        """Return the fields of `config` that this type computes otherwise, as name=value.

        Raises `ValueError` as `read_encoder_config` does.
        """
        if type(config) is not self.config_class:
            return [f"model={type(config).__name__}"]
        hf_config = self.build_hf_config(config) | {"pad_token_id": pad_id}
        read_back = self.read_encoder_config(hf_config).collect_computation_fields()
        wanted = config.collect_computation_fields()
        describe = lambda value: value.__name__ if isinstance(value, type) else repr(value)
        return [f"{name}={describe(value)}" for name, value in wanted.items() if read_back[name] != value]

    def build_hf_config(self, config: EncoderConfig) -> dict:
        """Return the fields of config.json for an encoder."""
        hf_names = {name: hf_name for hf_name, name in reversed(ACTIVATION_NAMES.items())}
        changed = {"activation": hf_names[config.activation]}
        changed["max_positions"] = config.max_positions + config.position_offset
        rows = self.list_config_fields()
        hf_config = {hf_name: changed.get(name, getattr(config, name)) for name, hf_name, _ in rows}
        return hf_config | self.write_nested(config)


def check_number_or_text(hf_name: str, value: Any, declared_type: str) -> None:
    """Check a value of config.json by the type of our field. Raises `ValueError`."""
    accepted_types = {"int": int, "float": int | float}.get(declared_type, str)
    if not isinstance(value, accepted_types) or isinstance(value, bool):
        raise UserError(f"{hf_name}={shorten(value)} is not a {'text' if accepted_types is str else 'number'}")
    minimum = 1 if declared_type == "int" else 0
    if accepted_types is not str and not minimum <= value < 2**31:  # JAX indexes with 32-bit integers
        raise UserError(f"{hf_name}={value!r} must be at least {minimum} and below 2**31")


def read_rope_theta(name: str, entry: Any, old_theta: Any) -> float:
    """Return the base of rotary positions from an entry of `rope_parameters`, or the one of transformers 4.

    Raises `ValueError` for another kind of rotary positions.
    """
    entry = entry if isinstance(entry, dict) else {}
    if entry.get("rope_type", "default") != "default":
        raise UserError(f"rope_type={shorten(entry['rope_type'])} is not supported; only 'default' is")
    theta = entry.get("rope_theta", old_theta)
    check_number_or_text(name, theta, "float")
    return theta


def has_different_groups(config: EncoderConfig) -> bool:
    """Return whether transformers, which divides in floating point, puts a layer into another group."""
    num_layers, num_groups = config.num_layers, config.num_groups
    return any(int(i / (num_layers / num_groups)) != i * num_groups // num_layers for i in range(num_layers))
