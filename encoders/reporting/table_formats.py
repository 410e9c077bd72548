"""Tables of text cells, and their formats: aligned text, Markdown and LaTeX, as tabulate writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import LATEX_ESCAPE_RULES, tabulate

# By output format: how a title is written, tabulate's name of the format, and what separates title, cells and notes.
TABLE_FORMATS = {
    "text": ("{}", "simple", "\n\n"),
    "markdown": ("### {}", "pipe", "\n\n"),
    "latex": ("% {}", "latex_booktabs", "\n"),
}


@dataclass(frozen=True)
class ReportTable:
    """A title, the names of the columns, rows of as many cells, notes below the table, and left-aligned columns."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    num_left: int = 1


def format_number(value: float) -> str:
    """Return a number with as many decimals as its size deserves: 1,234, 12.3 or 1.23."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def format_grid(rows: Sequence[Sequence[str]], tabulate_format: str = "simple", num_left: int = 1) -> str:
    """Return rows in a format of tabulate; the first row is the header, the first `num_left` columns are text.

    >>> print(format_grid([["run", "steps"], ["bert", "2,600"]]))
    run      steps
    -----  -------
    bert     2,600
    """
    header, *cells = rows
    alignment = ["left"] * num_left + ["right"] * (len(header) - num_left)
    return tabulate(cells, header, tabulate_format, disable_numparse=True, colalign=alignment)


def format_tables(report_tables: Sequence[ReportTable], output_format: str) -> str:
    """Return tables, each below its title and above its notes, as "text", "markdown" or "latex" (with booktabs)."""
    title_format, tabulate_format, separator = TABLE_FORMATS[output_format]
    blocks = []
    for table in report_tables:
        rows, notes = [table.header, *table.rows], list(table.notes)
        if output_format == "text" and notes:
            notes = ["\n".join(notes)]
        elif output_format == "markdown":
            rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        elif output_format == "latex":
            notes = ["".join(LATEX_ESCAPE_RULES.get(letter, letter) for letter in note) + r"\\" for note in notes]
        blocks += [title_format.format(table.title), format_grid(rows, tabulate_format, table.num_left), *notes]
    return separator.join(blocks)
