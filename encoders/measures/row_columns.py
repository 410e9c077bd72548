"""Columns of labelled rows: those that a measure was given, or those of a layout that it knows."""

from __future__ import annotations

from collections.abc import Sequence

from encoders.data.row_files import Record, RowError


def choose_columns(
    row: Record, columns: tuple[str, ...] | None, layouts: Sequence[tuple[str, ...]], name: str
) -> tuple[str, ...]:
    """Return `columns`, or without them the first layout all of whose columns are in the first row of a file.

    Raises `RowError` where the row lacks them. `name` is that of the measure.

    >>> choose_columns(Record("a.tsv:2", {"id": "7", "question": "Who?"}), None, [("text",), ("question",)], "any")
    ('question',)
    """
    accepted = layouts if columns is None else [columns]
    for layout in accepted:
        if row.values.keys() >= set(layout):
            return layout
    given = ", ".join(map(str, row.values))
    needed = " or ".join(", ".join(layout) for layout in accepted)
    raise RowError(row.location, f"the columns are {given}; {name} needs {needed}: change the file or {name}.columns")
