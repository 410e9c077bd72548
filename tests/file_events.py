"""What a process does with files, as its audit events tell."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

EVENTS = ("open", "os.mkdir", "os.rename", "os.listdir", "os.scandir")
# What an audit hook, which no process can remove, does with an event and a path.
on_file_event = None


def audit(event: str, arguments: tuple) -> None:
    if on_file_event is not None and event in EVENTS and isinstance(arguments[0], str | bytes | os.PathLike):
        on_file_event(event, Path(os.fsdecode(arguments[0])))


sys.addaudithook(audit)


@contextmanager
def watch_files(call):
    global on_file_event
    on_file_event = call
    try:
        yield
    finally:
        on_file_event = None
