"""Words with tags: files in CoNLL format, schemes of tags, and the entities that conlleval and seqeval find in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from encoders.data.row_files import Record, RowError, read_records
from encoders.utils.buckets import AnyPath, open_text
from encoders.utils.errors import UserError

SCHEMES = {"IOB": "BI", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES"}
POSITION = "(?P<position>[BIESLUM])"
TAG_PATTERNS = (rf"{POSITION}[-_](?P<type>.+)", rf"(?P<type>.+)[-_]{POSITION}", rf"(?P<type>){POSITION}")
COMMON_POSITIONS = {"L": "E", "U": "S", "M": "I"}  # of BILOU and BMES in BIOES
# Tags that other libraries write, and that would each be an entity of one word here.
FOREIGN_POSITION = "(?P<position>b|begin|beginning|i|in|inside|e|end|s|single|singleton|l|last|u|unit|unique|m|middle)"
FOREIGN_PATTERNS = (rf"{FOREIGN_POSITION}(?P<separator>[-_:/.|]).+", rf".+(?P<separator>[-_:/.|]){FOREIGN_POSITION}")
FOREIGN_OUTSIDE = ("o", "out", "outside")
OUTSIDE = ("O", "")
CONLLU_COLUMNS = 10
MIN_INDEXED_ROWS = 3  # of a file whose index runs on through its sentences
Tag = tuple[str, str]  # position and type
Sentence = list[tuple[int, list[str]]]  # the number and the fields of each line


def read_sentences(path: AnyPath, labels: Sequence[str] = ()) -> Iterator[Record | RowError]:
    """Yield the lists "words" and "tags" of each sentence of a .jsonl file, or of any other in CoNLL format."""
    return read_records(path) if path.suffix == ".jsonl" else read_conll_sentences(path, labels)


def read_conll_sentences(path: AnyPath, labels: Sequence[str]) -> Iterator[Record | RowError]:
    """Yield the sentences of a file in CoNLL format, which blank lines end.

    A line has fields between tabs or, without a tab, between spaces: first the word, last its tag. If the first field
    counts the words of every sentence, or those of the file, the word is the second. Lines of -DOCSTART- are passed
    over, and so are comments: lines before a sentence with "#" as their first field whose last one is none of `labels`.
    A bad line is yielded as a `RowError`. Raises `RowError` for a file without sentences, for one in CoNLL-U, and for
    one that has the tag first.
    """
    sentences: list[Sentence] = [[]]
    with open_text(path, errors="surrogateescape") as file:
        for number, line in enumerate(split_lines(file), 1):
            fields = [field.strip(" \r\n") for field in line.split("\t" if "\t" in line else " ")]
            if is_conllu_line(fields):
                accepted = "give a file of two columns, word and tag; the part of speech UPOS is column 4"
                raise RowError(f"{path}:{number}", f"the line is in CoNLL-U, where no column has tags; {accepted}")
            fields = [field for field in fields if field]
            if not line.strip() or fields[0].startswith("-DOCSTART-"):
                sentences.append([])
            elif sentences[-1] or line[:2] not in ("# ", "#\t") or fields[-1] in labels:
                sentences[-1].append((number, fields))
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise RowError(str(path), "it holds no sentences")
    check_tag_column(path, sentences, labels)
    first_index = find_first_index(sentences)
    is_running = first_index is None and has_running_index(sentences)
    if is_running:
        first_index = int(sentences[0][0][1][0])
    word_column = 0 if first_index is None else 1
    for sentence in sentences:
        if bad_line := find_bad_line(sentence, first_index):
            number, problem = bad_line
            yield RowError(f"{path}:{number}", problem)
        else:
            words, tags = [fields[word_column] for _, fields in sentence], [fields[-1] for _, fields in sentence]
            yield Record(f"{path}:{sentence[0][0]}", {"words": words, "tags": tags})
        if is_running:
            first_index = int(sentence[-1][1][0]) + 1


def split_lines(file: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a file. A file without line feeds has lines that end with carriage returns."""
    for number, line in enumerate(file):
        if number == 0 and not line.endswith("\n"):  # the only line
            yield from line.split("\r")
        else:
            yield line


def is_conllu_line(fields: Sequence[str]) -> bool:
    """Return whether ten fields between tabs are those of CoNLL-U: first an index, last "_" or names with values."""
    is_long = len(fields) == CONLLU_COLUMNS and re.fullmatch(r"\d+([-.]\d+)?", fields[0]) is not None
    return is_long and (fields[-1] == "_" or "=" in fields[-1])


def check_tag_column(path: AnyPath, sentences: Sequence[Sentence], labels: Sequence[str]) -> None:
    """Raise `RowError` if all first fields are tags of a scheme, and the last ones are not."""
    lines = [(number, fields) for sentence in sentences for number, fields in sentence if len(fields) > 1]
    firsts, lasts = {fields[0] for _, fields in lines}, {fields[-1] for _, fields in lines}
    if len(lines) < 2 or firsts <= {"O"} or lasts <= set(labels) or not all(map(is_scheme_tag, firsts)):
        return
    if not all(map(is_scheme_tag, lasts)):
        number, fields = lines[0]
        problem = f"the first field {fields[0]!r} is a tag and the last one {fields[-1]!r} is none"
        raise RowError(f"{path}:{number}", f"{problem}, as in all of the file; give the word first and its tag last")


def is_scheme_tag(text: str) -> bool:
    return re.fullmatch(r"O|[BIESLUM][-_][A-Za-z].*", text) is not None


def find_first_index(sentences: Sequence[Sentence]) -> int | None:
    """Return 0 or 1 if the first field of all sentences starts at that index, and in one of them counts on; or None."""
    for first in (0, 1):
        starts_there = all(sentence[0][1][0] == str(first) for sentence in sentences)
        if starts_there and any(len(sentence) > 1 and sentence[1][1][0] == str(first + 1) for sentence in sentences):
            return first
    return None


def has_running_index(sentences: Sequence[Sentence]) -> bool:
    """Return whether the first of three fields or more counts the words of all sentences together.

    It may start at any number, and leave some out.
    """
    rows = [fields for sentence in sentences for _, fields in sentence]
    is_numbered = all(re.fullmatch("0|[1-9][0-9]{,17}", row[0]) for row in rows)
    if len(rows) < MIN_INDEXED_ROWS or len(rows[0]) < 3 or not is_numbered:
        return False
    steps = [int(after[0]) - int(before[0]) for before, after in pairwise(rows)]
    return min(steps) > 0 and 2 * steps.count(1) >= len(steps)


def find_bad_line(sentence: Sentence, first_index: int | None) -> tuple[int, str] | None:
    """Return the number and the problem of the first line that lacks a tag, has another index than expected, or holds
    a carriage return behind its word."""
    for i, (number, fields) in enumerate(sentence, first_index or 0):
        if first_index is not None and fields[0] != str(i):
            return number, f"the first field {fields[0]!r} is not the index {i}"
        word_column = 0 if first_index is None else 1
        if len(fields) < word_column + 2:
            return number, f"the word {fields[-1]!r} lacks a tag"
        if joined := [field for field in fields[word_column + 1 :] if "\r" in field]:
            return number, f"the field {joined[0]!r} holds a carriage return; lines end with \\n or \\r\\n"
    return None


def read_tags(path: AnyPath) -> tuple[str, ...]:
    """Return the different tags of a file's sentences, "O" first.

    Raises `RowError` for a file without any: that of its first bad row, if it has one.
    """
    sentences = list(read_sentences(path))
    rows = [row["tags"] for row in sentences if isinstance(row, Record)]
    tags = {tag for row in rows if isinstance(row, list) for tag in row if isinstance(tag, str)}
    if not tags:
        bad_rows = (row for row in sentences if isinstance(row, RowError))
        raise next(bad_rows, RowError(str(path), "no sentence has tags"))
    return tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))


def parse_tags(labels: Sequence[str]) -> list[Tag]:
    """Return position (B, I, E, S or O) and type of each tag in IOB1, IOB2, BIOES, BILOU or BMES.

    The position is in front, behind or alone: B-PER, B_PER, PER-B, PER_B, B. Without B or I every tag but "O" is an
    entity of one word. Raises `UserError` for tags of no scheme, and for those of one in another form, such as b-per.

    >>> parse_tags(["O", "B-PER", "L-PER"]), parse_tags(["O", "PER"])
    ([('O', ''), ('B', 'PER'), ('E', 'PER')], [('O', ''), ('S', 'PER')])
    """
    names = [label for label in labels if label != "O"]
    parsed_by_pattern = [
        {name: (match["position"], match["type"]) for name in names if (match := re.fullmatch(pattern, name))}
        for pattern in TAG_PATTERNS
    ]
    parsed = max(parsed_by_pattern, key=len)
    positions = {position for position, _ in parsed.values()}
    known = ", ".join(f"{name} ({', '.join(letters)})" for name, letters in SCHEMES.items())
    if not positions & {"B", "I"}:
        if foreign := find_foreign_tag(names):
            raise UserError(
                f"labels={tuple(labels)} are of no scheme: {foreign!r} has another form than B-PER, B_PER, PER-B or "
                f"PER_B; the schemes are {known}, each with O"
            )
        return [OUTSIDE if label == "O" else ("S", label) for label in labels]
    others = [name for name in names if name not in parsed]
    if others or not any(positions <= set(letters) for letters in SCHEMES.values()):
        problem = ", ".join(others) or f"the positions {', '.join(sorted(positions))}"
        raise UserError(
            f"labels={tuple(labels)} are of no scheme: beside {next(iter(parsed))!r} they have {problem}; "
            f"the schemes are {known}, each with O"
        )
    to_common = lambda position, entity_type: (COMMON_POSITIONS.get(position, position), entity_type)
    return [to_common(*parsed[label]) if label in parsed else OUTSIDE for label in labels]


def find_foreign_tag(names: Sequence[str]) -> str | None:
    """Return the first of tags that begin or end with a position in lower case, in full, or behind another separator.

    All must have that form, with one separator, and one must be a beginning: other names are no tags of a scheme.
    """
    inside = [name for name in names if name.lower() not in FOREIGN_OUTSIDE]
    for pattern in FOREIGN_PATTERNS:
        matches = [re.fullmatch(pattern, name, re.IGNORECASE) for name in inside]
        if matches and all(matches) and len({match["separator"] for match in matches}) == 1:
            if any(match["position"].lower().startswith("b") for match in matches):
                return inside[0]
    return None


def extract_entities(tags: Sequence[Tag]) -> set[tuple[int, int, str]]:
    """Return first word, end and type of each entity in tags of `parse_tags`, as conlleval and seqeval find them.

    I and E continue an entity of their type behind B or I; any other tag but "O" starts one.

    >>> sorted(extract_entities(parse_tags(["B-PER", "I-PER", "O", "I-LOC"])))
    [(0, 2, 'PER'), (3, 4, 'LOC')]
    """
    entities, start, previous = set(), 0, OUTSIDE
    for i, (position, entity_type) in enumerate([*tags, OUTSIDE]):
        continues = position in "IE" and previous[0] in "BI" and previous[1] == entity_type
        if not continues:
            if previous != OUTSIDE:
                entities.add((start, i, previous[1]))
            start = i
        previous = position, entity_type
    return entities
