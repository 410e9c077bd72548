"""One Markdown page of all records: the papers' relations beside ours, the fastest runs, then each table."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from encoders.reporting.quality_board import build_quality_board
from encoders.reporting.records import RecordedRuns
from encoders.reporting.row_pairs import MAX_LISTED_PAIRS, RowPair, summarize_undecided
from encoders.reporting.table_formats import ReportTable, format_tables
from encoders.reporting.table_results import TableResults, collect_table_results

VERDICT_TEXTS = {"for": "agrees", "against": "differs"}  # other agreements say themselves


def format_results_page(records: Sequence[RecordedRuns], title: str) -> str:
    """Return the page as Markdown."""
    tables = [collect_table_results(recorded.table, recorded) for recorded in records]
    report_tables = [build_relations_table(tables)]
    if board := build_quality_board(records):
        report_tables.append(board)
    report_tables += [report_table for results in tables for report_table in results.build_report_tables()]
    return f"# {title}\n\n{format_tables(report_tables, 'markdown')}\n"


def build_relations_table(tables: Iterable[TableResults]) -> ReportTable:
    """Return a line for each relation of two rows that a paper has and that ours were compared in.

    "A > B" means that A has the larger number. Of a column with many relations those that are decided are listed, and
    the others counted.
    """
    lines, counts = [], Counter()
    for results in tables:
        pairs = [pair for pair in results.row_pairs if pair.published_sign]
        order_columns = {column.name: column.order_column for column in results.scored_columns}
        for column, column_pairs in itertools.groupby(pairs, key=lambda pair: pair.column):
            column_pairs = list(column_pairs)
            counts.update(pair.agreement for pair in column_pairs)
            score = f"{column}, the paper's {order_columns[column]}" if order_columns[column] else column
            is_short = len(column_pairs) <= MAX_LISTED_PAIRS
            listed = [pair for pair in column_pairs if is_short or pair.is_decided]
            lines += [(results.table.name, score, *format_relation(pair)) for pair in listed]
            if others := [pair for pair in column_pairs if pair not in listed]:
                others_name = f"{len(others)} other relations"
                lines.append((results.table.name, score, others_name, "-", "-", summarize_undecided(others)))
    parts = [f"{VERDICT_TEXTS.get(name, name)} {count}" for name, count in sorted(counts.items())]
    note = f"Of {sum(counts.values())} relations of the papers: {', '.join(parts) or 'none compared'}."
    header = ("table", "score", "published relation", "paper", "ours", "verdict")
    return ReportTable("Published relations", header, tuple(lines), (note,), num_left=3)


def format_relation(pair: RowPair) -> tuple[str, str, str, str]:
    """Return the paper's relation of two rows, the paper's difference and ours, and whether ours agrees."""
    verdict = VERDICT_TEXTS.get(pair.agreement, pair.statement)
    return (f"{pair.first} > {pair.second}", *pair.format_differences(), f"{verdict}{pair.mark}")
