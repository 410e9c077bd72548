"""Values as JSON by stable class names, and the content that fingerprints cover."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any

# The names of classes in saved experiments and fingerprints. A name never changes: a class that moves to another module
# or is renamed in the code changes its address here, and what was saved before stays readable.
CLASS_ADDRESSES = {
    "EncoderConfig": "encoders.model.config:EncoderConfig",
    "FamilyConventions": "encoders.model.config:FamilyConventions",
    "Embeddings": "encoders.model.layers:Embeddings",
    "SelfAttention": "encoders.model.layers:SelfAttention",
    "CausalSelfAttention": "encoders.model.layers:CausalSelfAttention",
    "FeedForward": "encoders.model.layers:FeedForward",
    "ElectraEmbeddings": "encoders.families.electra:ElectraEmbeddings",
    "TokenizerSpec": "encoders.text.tokenization:TokenizerSpec",
    "PretrainingData": "encoders.data.spec:PretrainingData",
    "LabelledData": "encoders.data.labelled:LabelledData",
    "CorpusFilters": "encoders.data.filters:CorpusFilters",
    "Phase": "encoders.data.stream:Phase",
    "SegmentPairs": "encoders.data.formats:SegmentPairs",
    "SentencePairs": "encoders.data.formats:SentencePairs",
    "FullSentences": "encoders.data.formats:FullSentences",
    "ElectraPairs": "encoders.data.formats:ElectraPairs",
    "MixedFormat": "encoders.data.mixing:MixedFormat",
    "PackedFormat": "encoders.data.packing:PackedFormat",
    "Masking": "encoders.objectives.masking:Masking",
    "MaskedLM": "encoders.objectives.masked_lm:MaskedLM",
    "NextSentencePrediction": "encoders.objectives.sentence_pair:NextSentencePrediction",
    "SentenceOrderPrediction": "encoders.objectives.sentence_pair:SentenceOrderPrediction",
    "ReplacedTokenDetection": "encoders.objectives.replaced_tokens:ReplacedTokenDetection",
    "ReplaceMLM": "encoders.objectives.restored_tokens:ReplaceMLM",
    "CausalLM": "encoders.objectives.causal_lm:CausalLM",
    "EncoderOnly": "encoders.tasks.encoder_only:EncoderOnly",
    "TextTask": "encoders.tasks.text_tasks:TextTask",
    "TextRows": "encoders.tasks.text_tasks:TextRows",
    "Classification": "encoders.tasks.classification:Classification",
    "QATask": "encoders.tasks.squad:QATask",
    "ContextWindows": "encoders.tasks.squad:ContextWindows",
    "SpanPrediction": "encoders.tasks.question_answering:SpanPrediction",
    "SpanWithClassifier": "encoders.tasks.question_answering:SpanWithClassifier",
    "ConditionedSpanPrediction": "encoders.tasks.question_answering:ConditionedSpanPrediction",
    "MultipleChoiceTask": "encoders.tasks.multiple_choice:MultipleChoiceTask",
    "MultipleChoiceRows": "encoders.tasks.multiple_choice:MultipleChoiceRows",
    "MultipleChoiceObjective": "encoders.tasks.multiple_choice:MultipleChoiceObjective",
    "TokenTask": "encoders.tasks.token_classification:TokenTask",
    "TaggedRows": "encoders.tasks.token_classification:TaggedRows",
    "TokenClassification": "encoders.tasks.token_classification:TokenClassification",
    "AdamW": "encoders.training.optimizer:AdamW",
    "Lamb": "encoders.training.optimizer:Lamb",
    "Mesh": "encoders.training.sharding:Mesh",
    "Intervals": "encoders.training.metric_log:Intervals",
    "RunSpec": "encoders.experiment:RunSpec",
    "Experiment": "encoders.experiment:Experiment",
    "Study": "encoders.sweeps.paper_table:Study",
    "PaperTable": "encoders.sweeps.paper_table:PaperTable",
    "PaperRow": "encoders.sweeps.paper_table:PaperRow",
    "ScoreColumn": "encoders.sweeps.paper_table:ScoreColumn",
}
FORMER_CLASS_NAMES: dict[str, str] = {}  # the name that older files have: the name above
REGISTERED_CLASSES: dict[str, type] = {}  # classes outside the package, by name


class ExperimentError(ValueError):
    """A field or a value that an experiment cannot have."""


# Classes by name -----------------------------------------------------------------------------------------------------


def register_class(cls: Any = None, /, name: str | None = None, *, formerly: tuple[str, ...] = ()) -> Any:
    """Give a class outside the package a name in saved experiments; use as a decorator, `@register_class`.

    `name` defaults to the name of the class; `formerly` lists its names in older files. Raises `ExperimentError` for a
    name that another class has.

    >>> from dataclasses import dataclass
    >>> @register_class(name="HalfMasking", formerly=("Halves",))
    ... @dataclass(frozen=True)
    ... class HalvedMasking:
    ...     mask_rate: float = 0.5
    >>> to_json_value(HalvedMasking())
    {'class': 'HalfMasking', 'mask_rate': 0.5}
    >>> from_json_value({"class": "Halves", "mask_rate": 0.25})
    HalvedMasking(mask_rate=0.25)
    """
    if cls is None:
        return lambda decorated: register_class(decorated, name, formerly=formerly)
    name = name or cls.__name__
    other = REGISTERED_CLASSES.get(name)
    if name in CLASS_ADDRESSES:
        raise ExperimentError(f"{name} is a class of encoders; register {describe_origin(cls)} under another name")
    if other and describe_origin(other) != describe_origin(cls):
        raise ExperimentError(
            f"{name} is registered twice, by {describe_origin(other)} and {describe_origin(cls)}; "
            'give one of them another name, @encoders.register(name="...")'
        )
    REGISTERED_CLASSES[name] = cls
    FORMER_CLASS_NAMES.update(dict.fromkeys(formerly, name))
    return cls


def describe_origin(cls: type) -> str:
    """Return the qualified name of a class and the file that defines it."""
    return f"{cls.__qualname__} of {getattr(sys.modules.get(cls.__module__), '__file__', cls.__module__)}"


def get_class_name(cls: type) -> str:
    """Return the name that saved experiments have for a class. Raises `ExperimentError` where it has none."""
    address = f"{cls.__module__}:{cls.__qualname__}"
    if CLASS_ADDRESSES.get(cls.__name__) == address:
        return cls.__name__
    for name, known in CLASS_ADDRESSES.items():
        if known == address:
            return name
    for name, registered in REGISTERED_CLASSES.items():
        if registered is cls or describe_origin(registered) == describe_origin(cls):
            return name
    raise ExperimentError(
        f"{cls.__module__}.{cls.__qualname__} is not registered, so a run with it could not be opened again; decorate "
        "the class with @encoders.register"
    )


def find_class(name: Any) -> type | None:
    """Return the class with this name in saved experiments, or None. Only modules of the package are imported."""
    if not isinstance(name, str):
        return None
    name = FORMER_CLASS_NAMES.get(name, name)
    if name not in CLASS_ADDRESSES:
        return REGISTERED_CLASSES.get(name)
    module, _, attribute = CLASS_ADDRESSES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def not_fingerprinted(default: Any = MISSING, *, formerly: tuple[str, ...] = ()) -> Any:
    """Return a dataclass field that changes speed, memory or a label but no number: the fingerprint leaves it out."""
    return field(default=default, metadata={"not_fingerprinted": True, "formerly": formerly})


def renamed_field(*formerly: str, default: Any = MISSING) -> Any:
    """Return a dataclass field that older files have under other names, the first of them first.

    The fingerprint keeps the first name, so that the runs of before are found.
    """
    return field(default=default, metadata={"formerly": formerly})


# Values as JSON ------------------------------------------------------------------------------------------------------


def to_json_value(value: Any) -> Any:
    """Return dataclasses as `{"class": NAME, fields}` and classes as `{"type": NAME}`.

    Raises `ExperimentError` for a class outside the package that is not registered.
    """
    if is_dataclass(value) and not isinstance(value, type):
        values = {f.name: to_json_value(getattr(value, f.name)) for f in fields(value)}
        return {"class": get_class_name(type(value))} | values
    if isinstance(value, type):
        return {"type": get_class_name(value)}
    if isinstance(value, tuple):
        return [to_json_value(item) for item in value]
    return value


def from_json_value(value: Any) -> Any:
    """Return the value that `to_json_value` was given.

    A file never has code imported: classes are those of the package, and those that were registered before. Raises
    `ExperimentError` for others, all of them named, and for fields that do not fit.
    """
    if missing := sorted({str(name) for name in iter_class_names(value) if find_class(name) is None}):
        raise ExperimentError(
            f"{', '.join(missing)!r} is not a class of encoders, and no file has registered it; pass the file that "
            "defines it with --code FILE, or import it first"
        )
    return build_value(value)


def iter_class_names(value: Any) -> Iterator[Any]:
    """Yield every class name in a JSON value."""
    if isinstance(value, dict):
        yield value.get("class", value.get("type", ""))
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from iter_class_names(item)


def build_value(value: Any) -> Any:
    """Return the value of JSON whose class names are known. Raises `ExperimentError` for fields that do not fit."""
    if isinstance(value, list):
        return tuple(build_value(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "class" not in value:
        return find_class(value["type"])
    name, cls = value["class"], find_class(value["class"])
    if not is_dataclass(cls):
        raise ExperimentError(f"{name} is a part of a model and not a value with fields")
    current_names = {old: f.name for f in fields(cls) for old in (f.name, *f.metadata.get("formerly", ()))}
    if unknown := sorted(set(value) - set(current_names) - {"class"}):
        known = ", ".join(sorted(f.name for f in fields(cls)))
        raise ExperimentError(f"{', '.join(unknown)}: not a field of {name}; it has {known}")
    try:
        return cls(**{current_names[key]: build_value(item) for key, item in value.items() if key != "class"})
    except (TypeError, AttributeError) as error:
        raise ExperimentError(f"{name} cannot be read: {error}") from None


# Values as what they compute -----------------------------------------------------------------------------------------


def fingerprint_content(value: Any) -> Any:
    """Return a value as JSON without fields that change no number and without fields at their default.

    Leaving defaults out keeps the fingerprints of old experiments when a field is added later. Classes and fields that
    were renamed keep their first name.
    """
    if is_dataclass(value) and not isinstance(value, type):
        content = {"class": get_first_class_name(type(value))}
        for f in fields(value):
            field_value = getattr(value, f.name)
            if f.metadata.get("not_fingerprinted") or (f.default is not MISSING and field_value == f.default):
                continue
            first_name = (*f.metadata.get("formerly", ()), f.name)[0]
            content[first_name] = fingerprint_content(field_value)
        return content
    if isinstance(value, type):
        return get_first_class_name(value)
    if isinstance(value, tuple):
        return [fingerprint_content(item) for item in value]
    if isinstance(value, float) and value.is_integer():  # 1 and 1.0 are equal
        return int(value)
    return value


def get_first_class_name(cls: type) -> str:
    """Return the oldest of the names that saved experiments have for a class."""
    name = get_class_name(cls)
    return next((old for old, new in FORMER_CLASS_NAMES.items() if new == name), name)


def flatten_fields(value: Any, path: str = "") -> dict[str, Any]:
    """Return every fingerprinted leaf of a value by its path, with the class of each dataclass at its own path."""
    flat: dict[str, Any] = {}
    if is_dataclass(value) and not isinstance(value, type):
        children = {f.name: getattr(value, f.name) for f in fields(value) if not f.metadata.get("not_fingerprinted")}
        if path:
            flat[path] = type(value).__name__
    elif isinstance(value, tuple) and any(map(is_dataclass, value)):
        children = {str(i): item for i, item in enumerate(value)}
        flat[path] = f"{len(value)} of them"
    else:
        return {path: value.__name__ if isinstance(value, type) else value}
    for name, child in children.items():
        flat |= flatten_fields(child, f"{path}.{name}" if path else name)
    return flat
