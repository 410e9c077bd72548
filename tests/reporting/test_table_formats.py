"""Tables of cells as aligned text, Markdown and LaTeX."""

import pytest

from encoders.reporting.table_formats import TABLE_FORMATS, ReportTable, format_grid, format_tables

TABLE = ReportTable("A title", ("", "a|b", "50 %"), (("x_1", "1.50", "-"), ("y & z", "1,234", "2e-5")), ("5 % of ~10",))


def test_the_first_column_is_aligned_left_and_numbers_keep_their_digits():
    header, _, first, second = format_grid([TABLE.header, *TABLE.rows]).splitlines()
    assert len(header) == len(first) == len(second)
    assert first.split() == ["x_1", "1.50", "-"] and second.startswith("y & z ") and second.endswith(" 2e-5")


def test_the_first_columns_are_aligned_left_where_a_table_says_so():
    table = ReportTable("A title", ("a", "words", "number"), (("x", "y", "1"), ("xx", "yyyyyy", "22")), num_left=2)
    first, second = format_tables([table], "text").splitlines()[-2:]
    assert first.index("y") == second.index("y") and len(first) == len(second)
    assert first.split() == ["x", "y", "1"] and second.split() == ["xx", "yyyyyy", "22"]


def test_a_table_without_rows_is_its_header():
    assert format_grid([("run", "steps")]).split()[:2] == ["run", "steps"]


def test_markdown_escapes_the_separator_of_its_columns():
    text = format_tables([TABLE], "markdown")
    assert "a\\|b" in text and text.startswith("### A title")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {4}


def test_latex_escapes_special_characters_of_cells_and_notes_once():
    text = format_tables([TABLE], "latex")
    for escaped in (r"x\_1", r"y \& z", r"50 \%", r"5 \% of \textasciitilde{}10"):
        assert escaped in text and "\\" + escaped not in text


@pytest.mark.parametrize("output_format", TABLE_FORMATS)
def test_every_format_has_all_titles_cells_and_notes(output_format):
    text = format_tables([TABLE, ReportTable("Another", ("k", "v"), (("word", "7.25"),))], output_format)
    for part in ("A title", "1.50", "1,234", "2e-5", "of", "Another", "word", "7.25"):
        assert part in text
