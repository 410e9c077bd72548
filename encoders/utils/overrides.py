"""Frozen dataclasses changed by path, with texts read by the declared types of their fields."""

import difflib
import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from encoders.utils.serialization import CLASS_ADDRESSES, REGISTERED_CLASSES, ExperimentError, find_class


def shorten_text(text: str, max_chars: int = 400) -> str:
    """Return the text, without its middle where it is longer than `max_chars` characters."""
    return text if len(text) <= max_chars else f"{text[: max_chars // 2]} ... {text[len(text) - max_chars // 2 + 5 :]}"


def check_choices(value: Any, path: str = "") -> None:
    """Check that every `Literal` field holds one of its choices. Raises `ExperimentError`."""
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            check_choices(item, f"{path}.{i}")
    elif is_dataclass(value) and not isinstance(value, type):
        for name, declared_type in typing.get_type_hints(type(value)).items():
            field_value, field_path = getattr(value, name), join_path(path, name)
            if typing.get_origin(declared_type) is typing.Literal:
                check_choice(field_value, typing.get_args(declared_type), field_path)
            check_choices(field_value, field_path)


def check_choice(value: Any, choices: tuple, path: str) -> Any:
    """Return the value. Raises `ExperimentError` if it is not among the choices."""
    if value not in choices:
        raise ExperimentError(f"{path}={value!r} is not one of {', '.join(map(str, choices))}")
    return value


def join_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def parse_settings(settings: Iterable[str]) -> dict:
    """Return settings such as "model.num_layers=4" as nested changes, {"model": {"num_layers": "4"}}."""
    changes: dict = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ExperimentError(f"--set {setting!r} must be of the form a.b=value")
        node = changes
        *parents, leaf = path.strip().split(".")
        for name in parents:
            node = node.setdefault(name, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or isinstance(node.get(leaf), dict):
            raise ExperimentError(f"--set {path} is set as a whole and in part; set one of the two")
        node[leaf] = text.strip()
    return changes


def apply_changes(value: Any, changes: Mapping[str, Any], path: str = "") -> Any:
    """Return a dataclass, or a tuple of them, with nested changes; texts are read by the field's declared type."""
    if not isinstance(changes, Mapping):
        raise ExperimentError(f"{path} cannot be set as a whole; set its fields or write an experiment file")
    if isinstance(value, tuple) and any(map(is_dataclass, value)):
        return change_items(value, changes, path)
    if not is_dataclass(value) or isinstance(value, type):
        raise ExperimentError(f"{path}={value!r} cannot be set field by field; it is not a dataclass")
    hints, changed = typing.get_type_hints(type(value)), {}
    names = sorted(f.name for f in fields(value))
    for name, change in changes.items():
        field_path = join_path(path, name)
        if name not in names:
            similar = difflib.get_close_matches(name, names, 1)
            hint = f" (did you mean {similar[0]!r}?)" if similar else ""
            owner = path or "an experiment"
            raise ExperimentError(f"{name!r} is not a field of {owner}{hint}; it has {', '.join(names)}")
        if isinstance(change, Mapping):
            change = apply_changes(getattr(value, name), change, field_path)
        changed[name] = parse_value(change, hints[name], field_path) if isinstance(change, str) else change
    try:
        return replace(value, **changed)
    except ExperimentError:
        raise
    except ValueError as error:
        raise ExperimentError(f"--set {path or 'of the experiment'}: {error}") from None


def change_items(items: tuple, changes: Mapping[str, Any], path: str) -> tuple:
    """Return a tuple of dataclasses with changes by index, or for all items under `*`."""
    changed = {str(i): item for i, item in enumerate(items)}
    for name, change in changes.items():
        if name not in (*changed, "*"):
            raise ExperimentError(f"{name!r} is not an index of {path}; it takes {', '.join(changed)} and * for all")
        for index in changed if name == "*" else (name,):
            changed[index] = apply_changes(changed[index], change, f"{path}.{index}")
    return tuple(changed.values())


def parse_value(text: str, declared_type: Any, path: str) -> Any:
    """Return the value that a text has in a field of the declared type. Raises `ExperimentError` with the path."""
    origin, options = typing.get_origin(declared_type), typing.get_args(declared_type)
    if origin is typing.Literal:
        return check_choice(text, options, path)
    if origin in (typing.Union, types.UnionType):
        return parse_union(text, options, path)
    if origin is tuple:
        return parse_tuple(text, options, path)
    if declared_type is bool:
        return check_choice(text.lower(), ("true", "false"), path) == "true"
    if declared_type in (int, float):
        return parse_number(text, declared_type, path)
    if declared_type is str:
        return text
    is_value = is_dataclass(declared_type) and not inspect.isabstract(declared_type)
    if (cls := find_subclass(text, (declared_type,))) or is_value:
        return parse_dataclass(text, cls or declared_type, path)
    if names := list_choices(declared_type):
        raise ExperimentError(f"{path}={text!r} is not one of {', '.join(names)}")
    raise ExperimentError(f"{path} cannot be set on the command line; write an experiment file")


def list_choices(declared_type: Any) -> list[str]:
    """Return the texts that a `Literal` takes, or the names of the dataclasses that a field of a class takes."""
    if typing.get_origin(declared_type) is typing.Literal:
        return [*typing.get_args(declared_type)]
    return [name for name in (*CLASS_ADDRESSES, *REGISTERED_CLASSES) if find_subclass(name, (declared_type,))]


def parse_union(text: str, options: tuple, path: str) -> Any:
    """Return the value of a text by the first of several types that can read it; a class is chosen by its name."""
    declared_types = tuple(option for option in options if option is not type(None))
    if type(None) in options and text.lower() in ("none", "null", ""):
        return None
    if cls := find_subclass(text, declared_types):
        return parse_dataclass(text, cls, path)
    for declared_type in declared_types:
        try:
            return parse_value(text, declared_type, path)
        except ExperimentError:
            if len(declared_types) == 1:
                raise
    names = [name for option in declared_types for name in list_choices(option) or [option.__name__]]
    names += [name for name, cls in REGISTERED_CLASSES.items() if is_accepted(cls, declared_types)]
    raise ExperimentError(f"{path}={text!r} is not one of {', '.join(dict.fromkeys(names))}")


def parse_tuple(text: str, item_types: tuple, path: str) -> tuple:
    """Return the items of a text, separated by commas, with or without brackets around them."""
    # Brackets around the whole text only: those of a glob such as [ab]*.txt stay.
    inside = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    items = [item.strip() for item in inside.split(",") if item.strip()]
    if item_types[-1] is Ellipsis:
        item_types = item_types[:1] * len(items)
    if len(items) != len(item_types):
        raise ExperimentError(f"{path}={text!r} must have {len(item_types)} values, separated by commas")
    return tuple(parse_value(item, item_type, path) for item, item_type in zip(items, item_types, strict=True))


def parse_number(text: str, declared_type: type, path: str) -> int | float:
    """Return a finite number; a whole one may be written as 1e3 or 1_000."""
    is_whole = declared_type is int
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or math.isinf(number) or (is_whole and number != number.to_integral_value()):
        raise ExperimentError(f"{path}={text!r} is not {'a whole number' if is_whole else 'a number'}")
    if is_whole and abs(number) >= 2**63:
        raise ExperimentError(f"{path}={text[:30]} must be below 2 to the 63")
    return declared_type(number)


def parse_dataclass(text: str, cls: type, path: str) -> Any:
    """Return a dataclass with its default values, chosen by the name of its class."""
    if find_class(text) is cls and all(f.default is not MISSING for f in fields(cls)):
        return cls()
    hint = f"; set its fields, such as {path}.{fields(cls)[0].name}=" if fields(cls) else ""
    raise ExperimentError(f"{path}={text!r} is not {cls.__name__}{hint}")


def find_subclass(name: str, declared_types: tuple) -> type | None:
    """Return the dataclass with this name in saved experiments, if a field of these types accepts it."""
    cls = find_class(name)
    return cls if is_dataclass(cls) and is_accepted(cls, declared_types) else None


def is_accepted(cls: type, declared_types: tuple) -> bool:
    """Return whether a class is one of the types, a subclass, or has a base class in common with all of them."""
    classes = [declared for declared in declared_types if isinstance(declared, type)]
    shared_bases = set.intersection(*(set(declared.__mro__) for declared in classes)) if classes else set()
    return not ({*classes, *shared_bases} - {object, typing.Protocol, typing.Generic}).isdisjoint(cls.__mro__)
