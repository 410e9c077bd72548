"""How Hugging Face writes each family: the names of its tensors, the fields of config.json, its classes.

A table pairs places in our parameter tree with places in theirs; `{}` is the number of a layer, or of a group of
layers that share parameters. Under a place the leaves follow one rule (`LEAVES`): dense kernels are transposed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from reprlib import repr as shown
from typing import Any

from encoders.families.albert import BOTH
from encoders.families.electra import ElectraEmbeddings
from encoders.model.config import Model
from encoders.objectives.sentence_pair import NextSentence, SentenceOrder
from encoders.training.optimizer import stacked

LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

# Field of `Model`, field of config.json, and what transformers takes where the file does not have it.
FIELDS = (
    ("vocab", "vocab_size", 30_522),
    ("hidden", "hidden_size", 768),
    ("layers", "num_hidden_layers", 12),
    ("heads", "num_attention_heads", 12),
    ("intermediate", "intermediate_size", 3072),
    ("positions", "max_position_embeddings", 512),
    ("segments", "type_vocab_size", 2),
    ("dropout", "hidden_dropout_prob", 0.1),
    ("attention_dropout", "attention_probs_dropout_prob", 0.1),
    ("norm_epsilon", "layer_norm_eps", 1e-12),
    ("deviation", "initializer_range", 0.02),
    ("activation", "hidden_act", "gelu"),
)
# A value other than these changes what the network computes, and none of ours does.
FIXED = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "inner_group_num": (1,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
# Tensors without information of their own: positions that count up, and segments that are all zero.
BUFFERS = r"(^|\.)embeddings\.(position_ids|token_type_ids)$"

TABLES = (
    ("encoder/embed/word", "{root}.embeddings.word_embeddings"),
    ("encoder/embed/position", "{root}.embeddings.position_embeddings"),
    ("encoder/embed/segment", "{root}.embeddings.token_type_embeddings"),
    ("encoder/embed/norm", "{root}.embeddings.LayerNorm"),
)
LAYERS = (
    ("encoder/layers/attend/query", "{root}.encoder.layer.{}.attention.self.query"),
    ("encoder/layers/attend/key", "{root}.encoder.layer.{}.attention.self.key"),
    ("encoder/layers/attend/value", "{root}.encoder.layer.{}.attention.self.value"),
    ("encoder/layers/attend/out", "{root}.encoder.layer.{}.attention.output.dense"),
    ("encoder/layers/attend/norm", "{root}.encoder.layer.{}.attention.output.LayerNorm"),
    ("encoder/layers/transform/up", "{root}.encoder.layer.{}.intermediate.dense"),
    ("encoder/layers/transform/down", "{root}.encoder.layer.{}.output.dense"),
    ("encoder/layers/transform/norm", "{root}.encoder.layer.{}.output.LayerNorm"),
)
GROUP = "albert.encoder.albert_layer_groups.{}.albert_layers.0"
GROUPS = (
    ("encoder/shared/attend/query", f"{GROUP}.attention.query"),
    ("encoder/shared/attend/key", f"{GROUP}.attention.key"),
    ("encoder/shared/attend/value", f"{GROUP}.attention.value"),
    ("encoder/shared/attend/out", f"{GROUP}.attention.dense"),
    ("encoder/shared/attend/norm", f"{GROUP}.attention.LayerNorm"),
    ("encoder/shared/transform/up", f"{GROUP}.ffn"),
    ("encoder/shared/transform/down", f"{GROUP}.ffn_output"),
    ("encoder/shared/transform/norm", f"{GROUP}.full_layer_layer_norm"),
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
    table: tuple[tuple[str, str], ...]
    ties: tuple[tuple[str, str], ...]
    classes: tuple[tuple[frozenset[str], str], ...]
    classifier: str
    class_dropout: tuple[str, float | None] = ("classifier_dropout", None)
    sentences: NextSentence | SentenceOrder | None = None  # what a pair head was trained for
    model: dict[str, Any] = field(default_factory=dict)
    fields: tuple[tuple[str, str], ...] = ()  # of `Model` and config.json, beyond `FIELDS`
    defaults: dict[str, Any] = field(default_factory=dict)
    always_gelu: tuple[str, ...] = ()
    padding_positions: bool = False  # positions count from the padding id on, as fairseq has it

    def place(self, path: str) -> tuple[str, str] | None:
        """Where the leaf at `path` of our tree is in theirs, `{}` for its layer, and the kind of leaf it is."""
        module, _, leaf = path.rpartition("/")
        theirs = next((theirs for ours, theirs in self.table if ours == module), None)
        return theirs and (f"{theirs.replace('{root}', self.name)}.{LEAVES[leaf]}", leaf)

    def tensors(self, path: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        """Their tensors for the leaf at `path` of our tree, one a layer, with the shapes they have."""
        place = self.place(path)
        if place is None:
            return []
        theirs, kind = place
        count, one = (shape[0], shape[1:]) if stacked(path) else (1, shape)
        return [(theirs.format(i), one[::-1] if kind == "kernel" else one) for i in range(count)]

    def part(self, name: str) -> str | None:
        """The part of a checkpoint that their tensor `name` belongs to."""
        for ours, theirs in self.table:
            pattern = re.escape(theirs.replace("{root}", self.name)).replace(r"\{\}", r"\d+")
            if re.fullmatch(rf"{pattern}\.(weight|bias)", name):
                return ours.partition("/")[0]
        return None

    def names(self) -> tuple[tuple[str, str, Any], ...]:
        """Field of `Model`, field of config.json, and its default, for every field that both have."""
        rows = (*FIELDS, *((ours, theirs, None) for ours, theirs in self.fields))
        return tuple((ours, theirs, self.defaults.get(theirs, default)) for ours, theirs, default in rows)

    def read(self, config: dict) -> Model:
        """The model that a config.json describes. Raises `ValueError` naming what no model here does."""
        for name, accepted in FIXED.items():
            if config.get(name, accepted[0]) not in accepted:
                raise ValueError(f"{name}={shown(config[name])}; only {accepted[0]!r} can be read")
        values = {ours: config.get(theirs, default) for ours, theirs, default in self.names()}
        kinds = {f.name: f.type for f in fields(Model)}
        for ours, theirs, _ in self.names():
            kind = {"int": int, "float": (int, float)}.get(kinds[ours], str)
            if not isinstance(values[ours], kind) or isinstance(values[ours], bool):
                raise ValueError(f"{theirs}={shown(values[ours])} is not {'text' if kind is str else 'a number'}")
            if kind is not str and not int(kind is int) <= values[ours] < 2**31:  # beyond it JAX's integers end
                raise ValueError(f"{theirs}={values[ours]!r} must be at least {int(kind is int)} and below 2**31")
        if values["activation"] not in ACTIVATIONS:
            raise ValueError(f"hidden_act={shown(values['activation'])} is not one of {', '.join(ACTIVATIONS)}")
        values["activation"] = ACTIVATIONS[values["activation"]]
        values = {"embedding": values["hidden"]} | values | self.model
        if self.padding_positions:
            pad = config.get("pad_token_id", 1)
            if type(pad) is not int or pad < 0:
                raise ValueError(f"pad_token_id={pad!r} is not the number of a token")
            values["position_offset"] = pad + 1
            values["positions"] -= values["position_offset"]
        return Model(**values)

    def differing(self, model: Model, pad: int) -> list[str]:
        """What this architecture computes otherwise than `model`, as name=value; raises `ValueError` as `read` does."""
        theirs = self.read(self.write(model) | {"pad_token_id": pad}).computes()
        return [f"{name}={value!r}" for name, value in model.computes().items() if theirs[name] != value]

    def written(self, found: frozenset[str]) -> tuple[frozenset[str], str]:
        """The largest class whose parts are all in `found`: its parts and its name."""
        return max((row for row in self.classes if row[0] <= found), key=lambda row: len(row[0]))

    def write(self, model: Model) -> dict:
        """The fields of config.json for `model`."""
        config = {theirs: getattr(model, ours) for ours, theirs, _ in self.names()}
        config["hidden_act"] = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == model.activation)
        config["max_position_embeddings"] += model.position_offset
        return config


def groups_differ(model: Model) -> bool:
    """Whether transformers, which divides in floating point, has a layer in another group than it is in here."""
    layers, groups = model.layers, model.groups
    return any(int(i / (layers / groups)) != i * groups // layers for i in range(layers if groups > 1 else 0))


def parts(*names: str) -> frozenset[str]:
    return frozenset(names)


BERT = Architecture(
    name="bert",
    table=(
        *TABLES,
        *LAYERS,
        ("tokens/dense", "cls.predictions.transform.dense"),
        ("tokens/norm", "cls.predictions.transform.LayerNorm"),
        ("tokens", "cls.predictions"),
        ("pooler/dense", "bert.pooler.dense"),
        ("pair/out", "cls.seq_relationship"),
        ("classes/out", "classifier"),
        ("spans", "qa_outputs"),
    ),
    ties=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    classes=(
        (parts("tokens", "pooler", "pair"), "BertForPreTraining"),
        (parts("tokens"), "BertForMaskedLM"),
        (parts("pooler", "classes"), "BertForSequenceClassification"),
        (parts("spans"), "BertForQuestionAnswering"),
        (parts("pooler"), "BertModel"),
        (parts(), "BertModel"),
    ),
    classifier="pooled",
    sentences=NextSentence(),
)

ROBERTA = Architecture(
    name="roberta",
    table=(
        *TABLES,
        *LAYERS,
        ("tokens/dense", "lm_head.dense"),
        ("tokens/norm", "lm_head.layer_norm"),
        ("tokens", "lm_head"),
        ("pooler/dense", "roberta.pooler.dense"),
        ("classes/dense", "classifier.dense"),
        ("classes/out", "classifier.out_proj"),
        ("spans", "qa_outputs"),
    ),
    ties=(
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    classes=(
        (parts("tokens"), "RobertaForMaskedLM"),
        (parts("classes"), "RobertaForSequenceClassification"),
        (parts("spans"), "RobertaForQuestionAnswering"),
        (parts("pooler"), "RobertaModel"),
        (parts(), "RobertaModel"),
    ),
    classifier="tanh",
    model={"truncated": False},
    defaults={"vocab_size": 50_265},
    always_gelu=("tokens",),
    padding_positions=True,
)

ALBERT = Architecture(
    name="albert",
    table=(
        *TABLES,
        ("encoder/project", "albert.encoder.embedding_hidden_mapping_in"),
        *GROUPS,
        ("tokens/dense", "predictions.dense"),
        ("tokens/norm", "predictions.LayerNorm"),
        ("tokens", "predictions"),
        ("pooler/dense", "albert.pooler"),
        ("pair/out", "sop_classifier.classifier"),
        ("classes/out", "classifier"),
        ("spans", "qa_outputs"),
    ),
    ties=(
        ("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
        ("predictions.decoder.bias", "predictions.bias"),
    ),
    classes=(
        (parts("tokens", "pooler", "pair"), "AlbertForPreTraining"),
        (parts("tokens"), "AlbertForMaskedLM"),
        (parts("pooler", "classes"), "AlbertForSequenceClassification"),
        (parts("spans"), "AlbertForQuestionAnswering"),
        (parts("pooler"), "AlbertModel"),
        (parts(), "AlbertModel"),
    ),
    classifier="pooled",
    class_dropout=("classifier_dropout_prob", 0.1),
    sentences=SentenceOrder(),
    # Its projection e → d is there also where the widths are equal, which Google's code has not.
    model={"share": BOTH, "always_project": True},
    fields=(("embedding", "embedding_size"), ("groups", "num_hidden_groups")),
    defaults={
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
    table=(
        *TABLES,
        ("encoder/project", "electra.embeddings_project"),
        *LAYERS,
        ("tokens/dense", "generator_predictions.dense"),
        ("tokens/norm", "generator_predictions.LayerNorm"),
        ("tokens", "generator_lm_head"),
        ("replaced/dense", "discriminator_predictions.dense"),
        ("replaced/out", "discriminator_predictions.dense_prediction"),
        ("classes/dense", "classifier.dense"),
        ("classes/out", "classifier.out_proj"),
        ("spans", "qa_outputs"),
    ),
    ties=(("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),),
    classes=(
        (parts("replaced"), "ElectraForPreTraining"),
        (parts("tokens"), "ElectraForMaskedLM"),
        (parts("classes"), "ElectraForSequenceClassification"),
        (parts("spans"), "ElectraForQuestionAnswering"),
        (parts(), "ElectraModel"),
    ),
    classifier="gelu",
    model={"embed": ElectraEmbeddings},
    fields=(("embedding", "embedding_size"),),
    defaults={"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    always_gelu=("tokens",),
)

ARCHITECTURES = {each.name: each for each in (BERT, ROBERTA, ALBERT, ELECTRA)}
