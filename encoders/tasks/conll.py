"""Words with tags: files in CoNLL format, schemes of tags, and the entities that conlleval and seqeval find in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from encoders.data.row_files import Record, RowError, read_records
from encoders.utils.buckets import AnyPath, open_text
from encoders.utils.errors import UserError

SCHEMES = {"IOB": "BI", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES"}
POSITION = "(?P<position>[BIESLUM])"
TAG_PATTERNS = (rf"{POSITION}[-_](?P<type>.+)", rf"(?P<type>.+)[-_]{POSITION}", rf"(?P<type>){POSITION}")
COMMON_POSITIONS = {"L": "E", "U": "S", "M": "I"}  # of BILOU and BMES in BIOES
OUTSIDE = ("O", "")
Tag = tuple[str, str]  # position and type
Sentence = list[tuple[int, list[str]]]  # the number and the fields of each line


def read_sentences(path: AnyPath, labels: Sequence[str] = ()) -> Iterator[Record | RowError]:
    """Yield the lists "words" and "tags" of each sentence of a .jsonl file, or of any other in CoNLL format."""
    return read_records(path) if path.suffix == ".jsonl" else read_conll_sentences(path, labels)


def read_conll_sentences(path: AnyPath, labels: Sequence[str]) -> Iterator[Record | RowError]:
    """Yield the sentences of a file in CoNLL format, which blank lines end.

    A line has fields between tabs or, without a tab, between spaces: first the word, last its tag. If every sentence
    counts its words in the first field, the word is the second. Lines of -DOCSTART- are passed over, and so are
    comments: lines before a sentence with "#" as their first field whose last one is none of `labels`.
    """
    sentences: list[Sentence] = [[]]
    with open_text(path, errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            fields = [field.strip(" \r\n") for field in line.split("\t" if "\t" in line else " ")]
            fields = [field for field in fields if field]
            if not line.strip() or fields[0].startswith("-DOCSTART-"):
                sentences.append([])
            elif sentences[-1] or line[:2] not in ("# ", "#\t") or fields[-1] in labels:
                sentences[-1].append((number, fields))
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise RowError(str(path), "it holds no sentences")
    first_index = find_first_index(sentences)
    word_column = 0 if first_index is None else 1
    for sentence in sentences:
        if bad_line := find_bad_line(sentence, first_index):
            number, problem = bad_line
            yield RowError(f"{path}:{number}", problem)
        else:
            words, tags = [fields[word_column] for _, fields in sentence], [fields[-1] for _, fields in sentence]
            yield Record(f"{path}:{sentence[0][0]}", {"words": words, "tags": tags})


def find_first_index(sentences: Sequence[Sentence]) -> int | None:
    """Return 0 or 1 if the first field of all sentences starts at that index, and in one of them counts on; or None."""
    for first in (0, 1):
        starts_there = all(sentence[0][1][0] == str(first) for sentence in sentences)
        if starts_there and any(len(sentence) > 1 and sentence[1][1][0] == str(first + 1) for sentence in sentences):
            return first
    return None


def find_bad_line(sentence: Sentence, first_index: int | None) -> tuple[int, str] | None:
    """Return the number and the problem of the first line without a tag, or with another index than expected."""
    for i, (number, fields) in enumerate(sentence, first_index or 0):
        if first_index is not None and fields[0] != str(i):
            return number, f"the first field {fields[0]!r} is not the index {i}"
        if len(fields) < (2 if first_index is None else 3):
            return number, f"the word {fields[-1]!r} lacks a tag"
    return None


def read_tags(path: AnyPath) -> tuple[str, ...]:
    """Return the different tags of a file's sentences, "O" first. Raises `RowError` for a file without any."""
    rows = [row["tags"] for row in read_sentences(path) if isinstance(row, Record)]
    tags = {tag for row in rows if isinstance(row, list) for tag in row if isinstance(tag, str)}
    if not tags:
        raise RowError(str(path), "no sentence has tags")
    return tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))


def parse_tags(labels: Sequence[str]) -> list[Tag]:
    """Return position (B, I, E, S or O) and type of each tag in IOB1, IOB2, BIOES, BILOU or BMES.

    The position is in front, behind or alone: B-PER, B_PER, PER-B, PER_B, B. Without B or I every tag but "O" is an
    entity of one word. Raises `ValueError` for tags of no scheme.

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
    if not positions & {"B", "I"}:
        return [OUTSIDE if label == "O" else ("S", label) for label in labels]
    others = [name for name in names if name not in parsed]
    if others or not any(positions <= set(letters) for letters in SCHEMES.values()):
        known = ", ".join(f"{name} ({', '.join(letters)})" for name, letters in SCHEMES.items())
        problem = ", ".join(others) or f"the positions {', '.join(sorted(positions))}"
        raise UserError(
            f"labels={tuple(labels)} are of no scheme: beside {next(iter(parsed))!r} they have {problem}; "
            f"the schemes are {known}, each with O"
        )
    to_common = lambda position, entity_type: (COMMON_POSITIONS.get(position, position), entity_type)
    return [to_common(*parsed[label]) if label in parsed else OUTSIDE for label in labels]


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
