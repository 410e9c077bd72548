"""Tables of text cells, and their formats: aligned text, Markdown and LaTeX, as tabulate writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tabulate import LATEX_ESCAPE_RULES, tabulate


@dataclass(frozen=True)
class ReportTable:
    """A title, the names of the columns, rows of as many cells, and notes below the table."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def format_cells(self, tabulate_format: str) -> str:
        """Return header and rows in a format of tabulate: the first column is text, the others are numbers."""
        alignment = ["left"] + ["right"] * (len(self.header) - 1)
        return tabulate(self.rows, self.header, tabulate_format, disable_numparse=True, colalign=alignment)


def format_grid(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns; the first row is the header, the first column is text.

    >>> print(format_grid([["run", "steps"], ["bert", "2,600"]]))
    run      steps
    -----  -------
    bert     2,600
    """
    header, *cells = rows
    return ReportTable("", tuple(header), tuple(map(tuple, cells))).format_cells("simple")


def format_as_text(report_tables: Sequence[ReportTable]) -> str:
    """Return the tables as aligned columns, each below its title and above its notes."""
    blocks = []
    for table in report_tables:
        blocks += [table.title, table.format_cells("simple")]
        if table.notes:
            blocks.append("\n".join(table.notes))
    return "\n\n".join(blocks)


def format_as_markdown(report_tables: Sequence[ReportTable]) -> str:
    """Return the tables with a heading of the third level each; a `|` in a cell is escaped."""
    blocks = []
    for table in report_tables:
        header, *rows = (tuple(cell.replace("|", "\\|") for cell in row) for row in (table.header, *table.rows))
        escaped = replace(table, header=header, rows=tuple(rows))
        blocks += [f"### {table.title}", escaped.format_cells("pipe"), *table.notes]
    return "\n\n".join(blocks)


def format_as_latex(report_tables: Sequence[ReportTable]) -> str:
    """Return tabulars for the booktabs package, each below its title as a comment and above its notes."""
    blocks = []
    for table in report_tables:
        blocks += [f"% {table.title}", table.format_cells("latex_booktabs")]
        for note in table.notes:
            blocks.append("".join(LATEX_ESCAPE_RULES.get(character, character) for character in note) + r"\\")
    return "\n".join(blocks)
