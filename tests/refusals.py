"""Errors of tests: what a message names counts, and not its wording."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def assert_names(message: str, *values) -> None:
    """Check that a message names files, lines, fields and values."""
    missing = [value for value in map(str, values) if value not in message]
    assert not missing, f"{missing} not in: {message}"


@contextmanager
def raises_naming(error: type[BaseException], *values) -> Iterator[pytest.ExceptionInfo]:
    """Check that an error is raised whose message names all of the values."""
    with pytest.raises(error) as caught:
        yield caught
    assert_names(str(caught.value), *values)
