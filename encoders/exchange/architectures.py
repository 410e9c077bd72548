"""How Hugging Face writes each family: the names of its tensors, the fields of config.json, its classes.

A table pairs places in our parameter tree with places in theirs; `{}` is the number of a layer, or of a group of
layers that share parameters. Under a place the leaves follow one rule (`LEAVES`): dense kernels are transposed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from reprlib import repr as shown
from typing import Any

from encoders.families import albert, electra, roberta
from encoders.model.config import EncoderConfig
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.training.optimizer import is_stacked

LEAF_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
ACTIVATION_NAMES = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

# Field of `EncoderConfig`, field of config.json, and what transformers takes where the file does not have it.
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
# A value other than these changes what the network computes, and none of ours does.
REQUIRED_VALUES = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "inner_group_num": (1,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
# Tensors without information of their own: positions that count up, and segments that are all zero.
BUFFER_PATTERN = r"(^|\.)embeddings\.(position_ids|token_type_ids)$"

EMBEDDING_NAMES = (
    ("encoder/embed/word", "{root}.embeddings.word_embeddings"),
    ("encoder/embed/position", "{root}.embeddings.position_embeddings"),
    ("encoder/embed/segment", "{root}.embeddings.token_type_embeddings"),
    ("encoder/embed/norm", "{root}.embeddings.LayerNorm"),
)
LAYER_NAMES = (
    ("encoder/layers/attend/query", "{root}.encoder.layer.{}.attention.self.query"),
    ("encoder/layers/attend/key", "{root}.encoder.layer.{}.attention.self.key"),
    ("encoder/layers/attend/value", "{root}.encoder.layer.{}.attention.self.value"),
    ("encoder/layers/attend/out", "{root}.encoder.layer.{}.attention.output.dense"),
    ("encoder/layers/attend/norm", "{root}.encoder.layer.{}.attention.output.LayerNorm"),
    ("encoder/layers/transform/up", "{root}.encoder.layer.{}.intermediate.dense"),
    ("encoder/layers/transform/down", "{root}.encoder.layer.{}.output.dense"),
    ("encoder/layers/transform/norm", "{root}.encoder.layer.{}.output.LayerNorm"),
)
ALBERT_LAYER_PREFIX = "albert.encoder.albert_layer_groups.{}.albert_layers.0"
ALBERT_LAYER_NAMES = (
    ("encoder/shared/attend/query", f"{ALBERT_LAYER_PREFIX}.attention.query"),
    ("encoder/shared/attend/key", f"{ALBERT_LAYER_PREFIX}.attention.key"),
    ("encoder/shared/attend/value", f"{ALBERT_LAYER_PREFIX}.attention.value"),
    ("encoder/shared/attend/out", f"{ALBERT_LAYER_PREFIX}.attention.dense"),
    ("encoder/shared/attend/norm", f"{ALBERT_LAYER_PREFIX}.attention.LayerNorm"),
    ("encoder/shared/transform/up", f"{ALBERT_LAYER_PREFIX}.ffn"),
    ("encoder/shared/transform/down", f"{ALBERT_LAYER_PREFIX}.ffn_output"),
    ("encoder/shared/transform/norm", f"{ALBERT_LAYER_PREFIX}.full_layer_layer_norm"),
)


@dataclass(frozen=True)
class Architecture:
    """A family as transformers has it.

    `table` holds rows of (ours, theirs). `ties` are tensors that repeat another one, which files may or may not hold.
    `classes` gives for the parts of a checkpoint, beside its encoder, the class that has just them. `model` holds what
    every model of this architecture has in common here, `defaults` where its configuration differs from BERT's.
    `always_gelu` are parts whose activation is gelu whatever the configuration says. `classifier` is the kind of
    `Classification` head it has, `class_dropout` where config.json has that head's rate and what it is without, None
    for that of the hidden states.
    """

    name: str
    module_names: tuple[tuple[str, str], ...]
    tied_tensors: tuple[tuple[str, str], ...]
    model_classes: tuple[tuple[frozenset[str], str], ...]
    classifier_head: str
    classifier_dropout_field: tuple[str, float | None] = ("classifier_dropout", None)
    sentence_task: NextSentencePrediction | SentenceOrderPrediction | None = None  # what a pair head was trained for
    config_values: dict[str, Any] = field(default_factory=dict)
    extra_fields: tuple[tuple[str, str], ...] = ()  # of `EncoderConfig` and config.json, beyond `FIELDS`
    hf_defaults: dict[str, Any] = field(default_factory=dict)
    gelu_heads: tuple[str, ...] = ()
    positions_start_after_pad: bool = False  # positions count from the padding id on, as fairseq has it

    def locate_leaf(self, path: str) -> tuple[str, str] | None:
        """Where the leaf at `path` of our tree is in theirs, `{}` for its layer, and the kind of leaf it is."""
        module, _, leaf = path.rpartition("/")
        theirs = next((theirs for ours, theirs in self.module_names if ours == module), None)
        return theirs and (f"{theirs.replace('{root}', self.name)}.{LEAF_NAMES[leaf]}", leaf)

    def list_hf_tensors(self, path: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        """Their tensors for the leaf at `path` of our tree, one a layer, with the shapes they have."""
        place = self.locate_leaf(path)
        if place is None:
            return []
        theirs, kind = place
        count, one = (shape[0], shape[1:]) if is_stacked(path) else (1, shape)
        return [(theirs.format(i), one[::-1] if kind == "kernel" else one) for i in range(count)]

    def find_part(self, tensor_name: str) -> str | None:
        """The part of a checkpoint that their tensor `name` belongs to."""
        for ours, theirs in self.module_names:
            pattern = re.escape(theirs.replace("{root}", self.name)).replace(r"\{\}", r"\d+")
            if re.fullmatch(rf"{pattern}\.(weight|bias)", tensor_name):
                return ours.partition("/")[0]
        return None

    def list_config_fields(self) -> tuple[tuple[str, str, Any], ...]:
        """Field of `EncoderConfig`, field of config.json, and its default, for every field that both have."""
        rows = (*CONFIG_FIELDS, *((ours, theirs, None) for ours, theirs in self.extra_fields))
        return tuple((ours, theirs, self.hf_defaults.get(theirs, default)) for ours, theirs, default in rows)

    def read_config(self, hf_config: dict) -> EncoderConfig:
        """The model that a config.json describes. Raises `ValueError` naming what no model here does."""
        for name, accepted in REQUIRED_VALUES.items():
            if hf_config.get(name, accepted[0]) not in accepted:
                raise ValueError(f"{name}={shown(hf_config[name])}; only {accepted[0]!r} can be read")
        values = {ours: hf_config.get(theirs, default) for ours, theirs, default in self.list_config_fields()}
        kinds = {f.name: f.type for f in fields(EncoderConfig)}
        for ours, theirs, _ in self.list_config_fields():
            kind = {"int": int, "float": (int, float)}.get(kinds[ours], str)
            if not isinstance(values[ours], kind) or isinstance(values[ours], bool):
                raise ValueError(f"{theirs}={shown(values[ours])} is not {'text' if kind is str else 'a number'}")
            if kind is not str and not int(kind is int) <= values[ours] < 2**31:  # beyond it JAX's integers end
                raise ValueError(f"{theirs}={values[ours]!r} must be at least {int(kind is int)} and below 2**31")
        if values["activation"] not in ACTIVATION_NAMES:
            raise ValueError(f"hidden_act={shown(values['activation'])} is not one of {', '.join(ACTIVATION_NAMES)}")
        values["activation"] = ACTIVATION_NAMES[values["activation"]]
        values = {"embedding_size": values["hidden_size"]} | values | self.config_values
        if self.positions_start_after_pad:
            pad = hf_config.get("pad_token_id", 1)
            if type(pad) is not int or pad < 0:
                raise ValueError(f"pad_token_id={pad!r} is not the number of a token")
            values["position_offset"] = pad + 1
            values["max_positions"] -= values["position_offset"]
        return EncoderConfig(**values)

    def list_config_differences(self, config: EncoderConfig, pad_id: int) -> list[str]:
        """What this architecture computes otherwise than `model`, as name=value; raises `ValueError` as `read` does."""
        theirs = self.read_config(self.build_hf_config(config) | {"pad_token_id": pad_id}).collect_computation_fields()
        return [
            f"{name}={value!r}" for name, value in config.collect_computation_fields().items() if theirs[name] != value
        ]

    def choose_model_class(self, heads: frozenset[str]) -> tuple[frozenset[str], str]:
        """The largest class whose parts are all in `found`: its parts and its name."""
        return max((row for row in self.model_classes if row[0] <= heads), key=lambda row: len(row[0]))

    def build_hf_config(self, encoder_config: EncoderConfig) -> dict:
        """The fields of config.json for `model`."""
        config = {theirs: getattr(encoder_config, ours) for ours, theirs, _ in self.list_config_fields()}
        config["hidden_act"] = next(
            theirs for theirs, ours in ACTIVATION_NAMES.items() if ours == encoder_config.activation
        )
        config["max_position_embeddings"] += encoder_config.position_offset
        return config


def has_different_groups(config: EncoderConfig) -> bool:
    """Whether transformers, which divides in floating point, has a layer in another group than it is in here."""
    layers, groups = config.num_layers, config.num_groups
    return any(int(i / (layers / groups)) != i * groups // layers for i in range(layers if groups > 1 else 0))


def make_head_set(*names: str) -> frozenset[str]:
    return frozenset(names)


BERT = Architecture(
    name="bert",
    module_names=(
        *EMBEDDING_NAMES,
        *LAYER_NAMES,
        ("tokens/dense", "cls.predictions.transform.dense"),
        ("tokens/norm", "cls.predictions.transform.LayerNorm"),
        ("tokens", "cls.predictions"),
        ("pooler/dense", "bert.pooler.dense"),
        ("pair/out", "cls.seq_relationship"),
        ("classes/out", "classifier"),
        ("spans", "qa_outputs"),
    ),
    tied_tensors=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    model_classes=(
        (make_head_set("tokens", "pooler", "pair"), "BertForPreTraining"),
        (make_head_set("tokens"), "BertForMaskedLM"),
        (make_head_set("pooler", "classes"), "BertForSequenceClassification"),
        (make_head_set("spans"), "BertForQuestionAnswering"),
        (make_head_set("pooler"), "BertModel"),
        (make_head_set(), "BertModel"),
    ),
    classifier_head="pooled",
    sentence_task=NextSentencePrediction(),
)

ROBERTA = Architecture(
    name="roberta",
    module_names=(
        *EMBEDDING_NAMES,
        *LAYER_NAMES,
        ("tokens/dense", "lm_head.dense"),
        ("tokens/norm", "lm_head.layer_norm"),
        ("tokens", "lm_head"),
        ("pooler/dense", "roberta.pooler.dense"),
        ("classes/dense", "classifier.dense"),
        ("classes/out", "classifier.out_proj"),
        ("spans", "qa_outputs"),
    ),
    tied_tensors=(
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    model_classes=(
        (make_head_set("tokens"), "RobertaForMaskedLM"),
        (make_head_set("classes"), "RobertaForSequenceClassification"),
        (make_head_set("spans"), "RobertaForQuestionAnswering"),
        (make_head_set("pooler"), "RobertaModel"),
        (make_head_set(), "RobertaModel"),
    ),
    classifier_head="tanh",
    config_values={"truncated_init": False, "conventions": roberta.CONVENTIONS},
    hf_defaults={"vocab_size": 50_265},
    gelu_heads=("tokens",),
    positions_start_after_pad=True,
)

ALBERT = Architecture(
    name="albert",
    module_names=(
        *EMBEDDING_NAMES,
        ("encoder/project", "albert.encoder.embedding_hidden_mapping_in"),
        *ALBERT_LAYER_NAMES,
        ("tokens/dense", "predictions.dense"),
        ("tokens/norm", "predictions.LayerNorm"),
        ("tokens", "predictions"),
        ("pooler/dense", "albert.pooler"),
        ("pair/out", "sop_classifier.classifier"),
        ("classes/out", "classifier"),
        ("spans", "qa_outputs"),
    ),
    tied_tensors=(
        ("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
        ("predictions.decoder.bias", "predictions.bias"),
    ),
    model_classes=(
        (make_head_set("tokens", "pooler", "pair"), "AlbertForPreTraining"),
        (make_head_set("tokens"), "AlbertForMaskedLM"),
        (make_head_set("pooler", "classes"), "AlbertForSequenceClassification"),
        (make_head_set("spans"), "AlbertForQuestionAnswering"),
        (make_head_set("pooler"), "AlbertModel"),
        (make_head_set(), "AlbertModel"),
    ),
    classifier_head="pooled",
    classifier_dropout_field=("classifier_dropout_prob", 0.1),
    sentence_task=SentenceOrderPrediction(),
    # Its projection e → d is there also where the widths are equal, which Google's code has not.
    config_values={
        "shared_parts": albert.ALL_PARTS,
        "always_project": True,
        "conventions": albert.CONVENTIONS,
    },
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
        *EMBEDDING_NAMES,
        ("encoder/project", "electra.embeddings_project"),
        *LAYER_NAMES,
        ("tokens/dense", "generator_predictions.dense"),
        ("tokens/norm", "generator_predictions.LayerNorm"),
        ("tokens", "generator_lm_head"),
        ("replaced/dense", "discriminator_predictions.dense"),
        ("replaced/out", "discriminator_predictions.dense_prediction"),
        ("classes/dense", "classifier.dense"),
        ("classes/out", "classifier.out_proj"),
        ("spans", "qa_outputs"),
    ),
    tied_tensors=(("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),),
    model_classes=(
        (make_head_set("replaced"), "ElectraForPreTraining"),
        (make_head_set("tokens"), "ElectraForMaskedLM"),
        (make_head_set("classes"), "ElectraForSequenceClassification"),
        (make_head_set("spans"), "ElectraForQuestionAnswering"),
        (make_head_set(), "ElectraModel"),
    ),
    classifier_head="gelu",
    config_values={"embeddings": electra.ElectraEmbeddings, "conventions": electra.CONVENTIONS},
    extra_fields=(("embedding_size", "embedding_size"),),
    hf_defaults={"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    gelu_heads=("tokens",),
)

ARCHITECTURES = {each.name: each for each in (BERT, ROBERTA, ALBERT, ELECTRA)}
