"""Frozen dataclasses as values: changed by path, read from text, saved as JSON that reads back equal."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any


class ExperimentError(ValueError):
    """A field or a value that an experiment cannot have."""


def shorten_text(text: str, max_chars: int = 400) -> str:
    """The text, its middle left out where it is longer than `max_chars` characters.

    >>> shorten_text("0123456789" * 9, 20)
    '0123456789 ... 56789'
    """
    return text if len(text) <= max_chars else f"{text[: max_chars // 2]} ... {text[len(text) - max_chars // 2 + 5 :]}"


def check_choices(value: Any, path: str = "") -> None:
    """Every field that has a list of choices holds one of them. Raises `ExperimentError`."""
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            check_choices(item, f"{path}.{i}")
    elif is_dataclass(value) and not isinstance(value, type):
        for name, kind in typing.get_type_hints(type(value)).items():
            given, here = getattr(value, name), f"{path}.{name}" if path else name
            if typing.get_origin(kind) is typing.Literal and given not in typing.get_args(kind):
                raise ExperimentError(f"{here}={given!r} is not one of {', '.join(map(str, typing.get_args(kind)))}")
            check_choices(given, here)


# Changing values ------------------------------------------------------------------------------------------------------


def apply_changes(value: Any, changes: Mapping[str, Any], path: str = "") -> Any:
    """A dataclass (or tuple of them) with a nested dict of changes; texts are read by the field's declared type."""
    if not isinstance(changes, Mapping):
        raise ExperimentError(f"{path} cannot be set as a whole; set its fields or write an experiment file")
    if isinstance(value, tuple) and any(map(is_dataclass, value)):
        numbers = [str(i) for i in range(len(value))]
        for name in changes:
            if name not in (*numbers, "*"):
                raise ExperimentError(f"{path} has no {name!r}; it has {', '.join(numbers)} and * for all")
        for name, inner in changes.items():
            each = range(len(value)) if name == "*" else [int(name)]
            value = tuple(apply_changes(v, inner, f"{path}.{i}") if i in each else v for i, v in enumerate(value))
        return value
    if not is_dataclass(value) or isinstance(value, type):
        raise ExperimentError(f"{path} is {value!r} and has no fields to set")
    hints = typing.get_type_hints(type(value))
    settable = {f.name for f in fields(value)}
    new = {}
    for name, inner in changes.items():
        here = f"{path}.{name}" if path else name
        if name not in settable:
            near = difflib.get_close_matches(name, settable, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ExperimentError(
                f"{path or 'an experiment'} has no {name!r}{hint}; it has {', '.join(sorted(settable))}"
            )
        if isinstance(inner, Mapping):
            new[name] = apply_changes(getattr(value, name), inner, here)
        else:
            new[name] = parse_value(inner, hints[name], here) if isinstance(inner, str) else inner
    try:
        return replace(value, **new)
    except ExperimentError:
        raise
    except ValueError as error:
        raise ExperimentError(f"--set {path or 'of the experiment'}: {error}") from None


def parse_value(text: str, declared_type: Any, path: str) -> Any:
    """The value that `text` stands for in a field of type `kind`."""
    origin, inner = typing.get_origin(declared_type), typing.get_args(declared_type)
    if origin is typing.Literal:
        if text in inner:
            return text
        raise ExperimentError(f"{path}={text!r} is not one of {', '.join(map(str, inner))}")
    if origin in (typing.Union, types.UnionType):
        if type(None) in inner and text.lower() in ("none", "null", ""):
            return None
        failures = []
        for option in inner:
            if option is not type(None):
                try:
                    return parse_value(text, option, path)
                except ExperimentError as error:
                    failures.append(error)
                    if text == getattr(option, "__name__", None):
                        raise
        if len(failures) == 1:
            raise failures[0]
        raise ExperimentError(
            f"{path}={text!r} is not one of {', '.join(o.__name__ for o in inner if o is not type(None))}"
        )
    if origin is tuple:
        # Brackets around the whole; those of a glob such as [ab]*.txt stay.
        inside = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        parts = [part.strip() for part in inside.split(",") if part.strip()]
        kinds = [inner[0]] * len(parts) if inner[-1] is Ellipsis else list(inner)
        if len(parts) != len(kinds):
            raise ExperimentError(f"{path}={text!r} must have {len(kinds)} values, separated by commas")
        return tuple(parse_value(part, k, path) for part, k in zip(parts, kinds, strict=True))
    if declared_type is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ExperimentError(f"{path}={text!r} is not one of true, false")
    if declared_type in (int, float):
        try:
            number = float(text.replace("_", ""))
            if not math.isfinite(number):
                raise ValueError
            if declared_type is int and number != int(number):
                raise ValueError
            if declared_type is int and abs(number) >= 2**63:
                raise ExperimentError(f"{path}={text[:30]} is larger than any number of the kind")
            return declared_type(number) if declared_type is float or "e" in text.lower() else int(text)
        except (ValueError, OverflowError):
            what = "a whole number" if declared_type is int else "a number"
            raise ExperimentError(f"{path}={text!r} is not {what}") from None
    if declared_type is str:
        return text
    if is_dataclass(declared_type):
        needed = [f.name for f in fields(declared_type) if f.default is dataclasses.MISSING]
        if text == declared_type.__name__ and not needed:
            return declared_type()
        hint = f"; set its fields, such as {path}.{fields(declared_type)[0].name}=" if fields(declared_type) else ""
        raise ExperimentError(f"{path}={text!r} is not {declared_type.__name__}{hint}")
    raise ExperimentError(f"{path} cannot be set on the command line; write an experiment file")


def format_name_part(value: Any) -> str:
    """`value` as a part of a name."""
    if isinstance(value, tuple):
        return "+".join(map(format_name_part, value)) or "none"
    if isinstance(value, type):
        return value.__name__
    return type(value).__name__ if is_dataclass(value) else str(value)


# Values as JSON -------------------------------------------------------------------------------------------------------


def to_json_value(value: Any) -> Any:
    """Dataclasses as `{"class": ..., fields}`, classes as `{"type": ...}`; only classes of `encoders` are named."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": get_class_path(type(value))} | {
            f.name: to_json_value(getattr(value, f.name)) for f in fields(value)
        }
    if isinstance(value, type):
        return {"type": get_class_path(value)}
    if isinstance(value, tuple):
        return [to_json_value(item) for item in value]
    return value


def get_class_path(cls: type) -> str:
    if cls.__module__.split(".")[0] != "encoders":
        raise ExperimentError(
            f"{cls.__module__}.{cls.__name__} is not part of the encoders package, so a run with it could not be "
            "opened again; put its file into encoders/"
        )
    return f"{cls.__module__}.{cls.__qualname__}"


def from_json_value(value: Any) -> Any:
    """The value that `to_json` was given. Names outside of `encoders` are refused, and nothing is executed."""
    if isinstance(value, list):
        return tuple(from_json_value(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = find_class(value.get("class", value.get("type", "")))
    if "type" in value:
        return kind
    if not is_dataclass(kind):
        raise ExperimentError(f"{value['class']} is not a value")
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(value) - known - {"class"})
    if unknown:
        raise ExperimentError(f"{value['class']} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        return kind(**{name: from_json_value(item) for name, item in value.items() if name != "class"})
    except (TypeError, AttributeError) as error:
        raise ExperimentError(f"{value['class']} cannot be read: {error}") from None


def find_class(class_path: str) -> type:
    module, _, attribute = str(class_path).rpartition(".")
    try:
        if module.split(".")[0] != "encoders":
            raise ImportError
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise ExperimentError(f"{class_path!r} is not a class of the encoders package") from None
    if not isinstance(found, type) or found.__module__ != module:
        raise ExperimentError(f"{class_path!r} is not a class of the encoders package")
    return found


# Values as what they compute -----------------------------------------------------------------------------------------


def fingerprint_content(value: Any) -> Any:
    """`value` as JSON without what changes no number, and without fields that have their default.

    Leaving defaults out keeps the fingerprints of old experiments when a field is added later.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kept = {}
        for f in fields(value):
            given = getattr(value, f.name)
            if not f.metadata.get("not_fingerprinted") and (f.default is dataclasses.MISSING or given != f.default):
                kept[f.name] = fingerprint_content(given)
        return {"class": type(value).__name__} | kept
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, tuple):
        return [fingerprint_content(item) for item in value]
    if isinstance(value, float) and value.is_integer():  # 1 and 1.0 are equal
        return int(value)
    return value


def flatten_fields(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of an experiment by its path, the class of each part included."""
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: getattr(value, f.name) for f in fields(value) if not f.metadata.get("not_fingerprinted")}
        start = {path: type(value).__name__} if path else {}
        parts = (flatten_fields(item, f"{path}.{name}" if path else name) for name, item in inner.items())
    elif isinstance(value, tuple) and any(map(is_dataclass, value)):
        start = {path: f"{len(value)} of them"}
        parts = (flatten_fields(item, f"{path}.{i}") for i, item in enumerate(value))
    else:
        return {path: value.__name__ if isinstance(value, type) else value}
    return start | {k: v for part in parts for k, v in part.items()}
