"""Checks of the fields of frozen dataclasses, as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from encoders.utils.errors import UserError


def check_fields(owner: Any, path: str, checks: Iterable[tuple[str, Callable[[Any], bool], str]]) -> None:
    """Raise `ValueError` for the first field that fails a check: `(names of fields, is_valid, what is accepted)`.

    >>> check_fields(range(3), "", [("start", lambda start: start > 0, "above 0")])
    Traceback (most recent call last):
    encoders.utils.errors.UserError: start=0 must be above 0
    """
    for names, is_valid, accepted in checks:
        for name in names.split():
            if not is_valid(getattr(owner, name)):
                raise UserError(f"{path}{name}={getattr(owner, name)!r} must be {accepted}")
