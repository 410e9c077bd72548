"""Errors that users cause and can mend: one base class, and the line that says what is wrong."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

# Modules of the errors of buckets' clients, and what messages of a refusal hold.
BUCKET_CLIENTS = (
    *("gcsfs.", "google.api_core.", "google.auth.", "google.cloud.", "aiohttp.", "s3fs.", "botocore.", "adlfs."),
    *("azure.", "huggingface_hub.", "fsspec.", "requests.", "urllib3."),
)
BUCKET_MARKS = ("gs://", "s3://", "Bad Request")  # in a `ValueError` of TensorStore, Orbax or gcsfs
PASSING_ERRNOS = (errno.EBUSY, errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EAGAIN)  # as s3fs has them
REFUSAL_REGEX = re.compile(r"(code: |, )40[13]\b|PERMISSION_DENIED|quotaExceeded|QuotaExceeded|Access ?Denied")
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """Base class of every error that a user causes; its message says all, so no traceback is shown."""


def is_expected(error: BaseException) -> bool:
    """Return whether the message of an error says all: one of ours, or one of the operating system.

    Every other error is a mistake in a program, and its traceback is shown.
    """
    has_no_home = isinstance(error, RuntimeError) and "home directory" in str(error)  # of `Path.expanduser`
    return isinstance(error, (UserError, OSError)) or has_no_home or is_disk_full(error) or is_of_bucket(error)


@contextmanager
def suppress_expected_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_expected(error):
            raise


def is_of_bucket(error: BaseException) -> bool:
    """Return whether an error may be of a bucket's client or of the network, or of TensorStore about a bucket."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in PASSING_ERRNOS:
        return True
    names_bucket = isinstance(error, ValueError) and any(mark in str(error) for mark in BUCKET_MARKS)
    return names_bucket or f"{type(error).__module__}.".startswith(BUCKET_CLIENTS)


def is_refusal(error: BaseException) -> bool:
    """Return whether a bucket refuses by right or quota: asking again does not help."""
    has_code = getattr(error, "code", None) in (401, 403)
    return isinstance(error, PermissionError) or has_code or bool(REFUSAL_REGEX.search(str(error)))


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of Python, Orbax or TensorStore says that a disk or a quota is full."""
    is_named = any(os.strerror(code) in str(error) for code in DISK_FULL_ERRNOS)
    return is_named and isinstance(error, (OSError, ValueError))


def describe_error(error: BaseException) -> str:
    """Return what an expected error says; of the operating system's, the files and the reason.

    >>> describe_error(FileNotFoundError(2, "No such file or directory", "text.txt"))
    'text.txt: No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        return ": ".join([*files, error.strerror])
    if isinstance(error, UserError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if is_disk_full(error):  # of a library, whose message may have many lines
        lines = [line for line in lines if any(os.strerror(code) in line for code in DISK_FULL_ERRNOS)]
    return lines[0] if lines else type(error).__name__


def escape_control(text: str) -> str:
    r"""Return a text that is safe to show: control characters, and marks that reverse its order, become `\u` and hex.

    Line ends and tabs stay. JSON stays JSON.

    >>> escape_control("red \x1b[31m, \u202e reversed")
    'red \\u001b[31m, \\u202e reversed'
    """
    return "".join(f"\\u{ord(x):04x}" if is_control(x) else x for x in text)


def is_control(character: str) -> bool:
    code = ord(character)
    is_visible = character in "\n\t" or (32 <= code < 127)
    return not is_visible and (code < 32 or 127 <= code < 160 or 0x2028 <= code <= 0x202E or 0x2066 <= code <= 0x2069)
