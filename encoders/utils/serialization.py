"""Values as JSON by stable class names, and the content that fingerprints cover."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any

from encoders.utils.errors import UserError

# The names of classes in saved experiments and fingerprints, by module. A name never changes: a class that moves to
# another module or is renamed in the code changes its address below, and what was saved before stays readable.
CLASS_NAMES = {
    "encoders.model.config": "EncoderConfig FamilyConventions",
    "encoders.model.layers": "Embeddings WordEmbeddings SelfAttention CausalSelfAttention FeedForward FinalRMSNorm",
    "encoders.model.heads": "MaskedTokenHead UntiedTokenHead Pooler GeluPooler ReplacedTokenHead",
    "encoders.families.electra": "ElectraEmbeddings",
    "encoders.families.modernbert": (
        "ModernBertConfig ModernBertEmbeddings ModernBertRotary ModernBertAttention ModernBertFeedForward "
        "ModernBertTokenHead ModernBertPooler"
    ),
    "encoders.model.rotary": "RotaryFeatures",
    "encoders.families.eurobert": ("EuroBertConfig EuroBertAttention EuroBertFeedForward EuroBertTokenHead"),
    "encoders.families.neobert": "NeoBertConfig NeoBertAttention NeoBertFeedForward",
    "encoders.families.esm": "EsmConfig EsmEmbeddings EsmRotary EsmAttention EsmFeedForward EsmFinalNorm",
    "encoders.families.deberta": (
        "DebertaConfig DebertaEmbeddings RelativePositions DisentangledAttention DebertaReplacedTokenHead"
    ),
    "encoders.text.tokenization": "TokenizerSpec",
    "encoders.data.spec": "PretrainingData",
    "encoders.data.labelled": "LabelledData",
    "encoders.data.filters": "CorpusFilters",
    "encoders.data.stream": "Phase BatchRamp",
    "encoders.data.formats": "SegmentPairs SentencePairs FullSentences ElectraPairs",
    "encoders.data.mixing": "MixedFormat",
    "encoders.data.packing": "PackedFormat",
    "encoders.objectives.masking": "Masking",
    "encoders.objectives.masked_lm": "MaskedLM",
    "encoders.objectives.sentence_pair": "NextSentencePrediction SentenceOrderPrediction",
    "encoders.objectives.replaced_tokens": "ReplacedTokenDetection",
    "encoders.objectives.restored_tokens": "ReplaceMLM",
    "encoders.objectives.causal_lm": "CausalLM",
    "encoders.objectives.embedding_losses": (
        "InfoNCE TripletLoss CosineMSE CoSENT AnglE Distillation Matryoshka NoComparison"
    ),
    "encoders.tasks.encoder_only": "EncoderOnly",
    "encoders.tasks.contrastive": "Contrastive",
    "encoders.tasks.text_groups": "EmbeddingTask TextGroups",
    "encoders.tasks.text_tasks": "TextTask TextRows",
    "encoders.tasks.classification": "Classification",
    "encoders.tasks.squad": "QATask ContextWindows",
    "encoders.tasks.question_answering": "SpanPrediction SpanWithClassifier ConditionedSpanPrediction",
    "encoders.tasks.multiple_choice": "MultipleChoiceTask MultipleChoiceRows MultipleChoiceObjective",
    "encoders.tasks.token_classification": "TokenTask TaggedRows TokenClassification",
    "encoders.training.optimizer": "AdamW Lamb StableAdamW Muon",
    "encoders.training.schedules": "WarmupStableDecay CosineDecay PiecewiseSchedule SchedulePiece",
    "encoders.training.sharding": "Mesh",
    "encoders.training.metric_log": "Intervals",
    "encoders.experiment": "RunSpec Experiment",
    "encoders.measures.masked_tokens": "MaskedTokens",
    "encoders.measures.fixed_corruption": "FixedCorruption",
    "encoders.measures.minimal_pairs": "MinimalPairs",
    "encoders.measures.sts": "SentenceSimilarity",
    "encoders.measures.probes": "LinearProbe",
    "encoders.measures.retrieval": "Retrieval",
    "encoders.measures.clustering": "Clustering",
    "encoders.measures.pair_classification": "PairClassification",
    "encoders.sweeps.paper_table": "Study PaperTable PaperRow",
    "encoders.sweeps.score_columns": "ScoreColumn",
}
CLASS_ADDRESSES = {name: f"{module}:{name}" for module, names in CLASS_NAMES.items() for name in names.split()}
FORMER_CLASS_NAMES: dict[str, str] = {}  # the name that older files have: the name above
REGISTERED_CLASSES: dict[str, type] = {}  # classes outside the package, by name


class ExperimentError(UserError):
    """A field or a value that an experiment cannot have."""


def register_class(cls: Any = None, /, name: str | None = None, *, formerly: tuple[str, ...] = ()) -> Any:
    """Give a class outside the package a name in saved experiments; use as a decorator, `@register_class`.

    `name` defaults to the name of the class; `formerly` lists its names in older files. Raises `ExperimentError` for a
    name that another class has.
    """
    if cls is None:
        return lambda decorated: register_class(decorated, name, formerly=formerly)
    name = name or cls.__name__
    other = REGISTERED_CLASSES.get(name)
    if name in CLASS_ADDRESSES:
        raise ExperimentError(f"{name} is a class of encoders; register {describe_origin(cls)} under another name")
    if other and describe_origin(other) != describe_origin(cls):
        origins = f"{describe_origin(other)} and {describe_origin(cls)}"
        raise ExperimentError(f"{name} is registered twice, by {origins}; give one of them another name=")
    REGISTERED_CLASSES[name] = cls
    FORMER_CLASS_NAMES.update(dict.fromkeys(formerly, name))
    return cls


def describe_origin(cls: type) -> str:
    return f"{cls.__qualname__} of {getattr(sys.modules.get(cls.__module__), '__file__', cls.__module__)}"


def get_class_name(cls: type) -> str:
    """Return the name that saved experiments have for a class. Raises `ExperimentError` where it has none."""
    address = f"{cls.__module__}:{cls.__qualname__}"
    names = [name for name, known in CLASS_ADDRESSES.items() if known == address]
    names += [name for name, known in REGISTERED_CLASSES.items() if describe_origin(known) == describe_origin(cls)]
    if names:
        return names[0]
    hint = "a run with it could not be opened again; decorate the class with @encoders.register"
    raise ExperimentError(f"{cls.__module__}.{cls.__qualname__} is not registered, so {hint}")


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
    """Return a dataclass field that older files have under other names, of which the fingerprint keeps the first."""
    return field(default=default, metadata={"formerly": formerly})


def to_json_value(value: Any) -> Any:
    """Return dataclasses as `{"class": NAME, fields}`, and classes, which need a name as well, as `{"type": NAME}`."""
    if is_dataclass(value) and not isinstance(value, type):
        values = {f.name: to_json_value(getattr(value, f.name)) for f in fields(value)}
        return {"class": get_class_name(type(value))} | values
    if isinstance(value, type):
        return {"type": get_class_name(value)}
    if isinstance(value, tuple):
        return [to_json_value(item) for item in value]
    return value


def from_json_value(value: Any) -> Any:
    """Return the value that `to_json_value` was given; classes are those of the package and registered ones.

    Raises `ExperimentError` for other classes, all of them named, and for fields that do not fit.
    """
    try:
        class_names = {str(name) for name in iter_class_names(value) if find_class(name) is None}
    except RecursionError:
        raise ExperimentError("the JSON is nested too deeply") from None
    if missing := sorted(class_names):
        hint = "no file has registered it; pass the file that defines it with --code FILE, or import it first"
        raise ExperimentError(f"{', '.join(missing)!r} is not a class of encoders, and {hint}")
    return build_value(value)


def iter_class_names(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield value.get("class", value.get("type", ""))
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from iter_class_names(item)


def build_value(value: Any) -> Any:
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
    values = {current_names[key]: build_value(item) for key, item in value.items() if key != "class"}
    try:
        return cls(**values)
    except UserError:
        raise
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError) as error:  # of another type's value
        raise ExperimentError(f"{name} cannot be read: {error}") from None


def fingerprint_content(value: Any) -> Any:
    """Return a value as JSON under first names, without fields that change no number and without defaults.

    Since defaults are left out, a field that is added later keeps the fingerprints of old experiments.
    """
    if is_dataclass(value) and not isinstance(value, type):
        content = {"class": get_first_class_name(type(value))}
        for f in fields(value):
            field_value = getattr(value, f.name)
            if not f.metadata.get("not_fingerprinted") and (f.default is MISSING or field_value != f.default):
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


def flatten_fields(value: Any, path: str = "", fingerprinted_only: bool = True) -> dict[str, Any]:
    """Return every leaf of a value by its path, with the class of each dataclass at its own path.

    By default these are the leaves that the fingerprint covers.
    """
    if is_dataclass(value) and not isinstance(value, type):
        flat = {path: type(value).__name__} if path else {}
        is_left_out = lambda f: fingerprinted_only and f.metadata.get("not_fingerprinted")
        children = {f.name: getattr(value, f.name) for f in fields(value) if not is_left_out(f)}
    elif isinstance(value, tuple) and any(map(is_dataclass, value)):
        flat, children = {path: f"{len(value)} of them"}, dict(enumerate(value))
    else:
        return {path: value.__name__ if isinstance(value, type) else value}
    for name, child in children.items():
        flat |= flatten_fields(child, f"{path}.{name}" if path else str(name), fingerprinted_only)
    return flat
