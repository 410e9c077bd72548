"""The authors' pre-training data code told anew: lists of tokens, one token after the other, and nothing from here.

BERT's and ALBERT's create_pretraining_data.py, ELECTRA's build_pretraining_dataset.py, fairseq's TokenBlockDataset and
the packing that RoBERTa's §4.2 describes. A document is a list of sentences, a sentence a list of tokens, which may be
any numbers; an example is (a, b, label). `length` is that of a row with its special tokens.
"""

from collections.abc import Iterator
from random import Random

Document = list[list[int]]
Example = tuple[list[int], list[int], int]


# BERT and ALBERT


def pairs(documents: list[Document], length: int, rng: Random, swap: bool, short: float = 0.1) -> Iterator[Example]:
    """One pass over all documents: BERT's, label 1 where B is random, or with `swap` ALBERT's, where it is first."""
    for number in range(len(documents)):
        yield from instances_from_document(documents, number, length, rng, swap, short)


def instances_from_document(
    documents: list[Document], number: int, length: int, rng: Random, swap: bool, short: float
) -> Iterator[Example]:
    document = documents[number]
    most = length - 3  # [CLS], [SEP], [SEP]
    target = most
    if rng.random() < short:
        target = rng.randint(2, most)
    chunk: list[list[int]] = []
    size = 0
    i = 0
    while i < len(document):
        chunk.append(document[i])
        size += len(document[i])
        if i == len(document) - 1 or size >= target:
            a_end = 1
            if len(chunk) >= 2:
                a_end = rng.randint(1, len(chunk) - 1)
            a: list[int] = []
            for sentence in chunk[:a_end]:
                a.extend(sentence)
            b: list[int] = []
            label = 0
            if len(chunk) == 1 or (not swap and rng.random() < 0.5):
                label = 1
                b.extend(random_next(documents, number, target - len(a), rng))
                i -= len(chunk) - a_end  # what was not used is put back
            else:
                for sentence in chunk[a_end:]:
                    b.extend(sentence)
                if swap and rng.random() < 0.5:
                    label = 1
                    a, b = b, a
            truncate_seq_pair(a, b, most, rng)
            yield a, b, label
            chunk = []
            size = 0
        i += 1


def random_next(documents: list[Document], number: int, wanted: int, rng: Random) -> list[int]:
    """Sentences of another document, or after ten tries of the same, until there are `wanted` tokens."""
    for _ in range(10):
        other = rng.randint(0, len(documents) - 1)
        if other != number:
            break
    found: list[int] = []
    for sentence in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
        found.extend(sentence)
        if len(found) >= wanted:
            break
    return found


def truncate_seq_pair(a: list[int], b: list[int], most: int, rng: Random) -> None:
    while len(a) + len(b) > most:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def masked_lm_predictions(
    tokens: list[int],
    rng: Random,
    *,
    limit: int,
    special: tuple[int, ...],
    mask: int,
    vocabulary: int,
    continues: list[bool] | None = None,
    rate: float = 0.15,
) -> tuple[list[int], list[int]]:
    """What is shown of a row that begins with [CLS], and the chosen positions; `special` are [CLS] and [SEP].

    With `continues`, which says of each id whether it continues a word, whole words are chosen.
    """
    candidates: list[list[int]] = []
    for position, token in enumerate(tokens):
        if token in special:
            continue
        if continues is not None and candidates and continues[token]:
            candidates[-1].append(position)
        else:
            candidates.append([position])
    rng.shuffle(candidates)
    shown = list(tokens)
    wanted = min(limit, max(1, round(len(tokens) * rate)))  # of the length with its special tokens
    chosen: list[int] = []
    for word in candidates:
        if len(chosen) >= wanted:
            break
        if len(chosen) + len(word) > wanted:
            continue
        for position in word:
            if rng.random() < 0.8:
                shown[position] = mask
            elif rng.random() < 0.5:
                shown[position] = rng.randint(0, vocabulary - 1)
            chosen.append(position)
    return shown, sorted(chosen)


# ELECTRA


class ExampleBuilder:
    """Rows of lines as they come; one builder reads all documents, so a target may be for the next one's first row.

    The description is of two segments that are the text's. The code also lets a later line join the first one where it
    still fits there, though the second has begun: that is `back`.
    """

    def __init__(self, length: int, rng: Random, back: bool):
        self.length, self.rng, self.back = length, rng, back
        self.lines: list[list[int]] = []
        self.size = 0
        self.target = length

    def add_line(self, line: list[int]) -> Example | None:
        """An example where this line, or the empty one after a document, completes it."""
        if not line and self.size:
            return self.example()
        self.lines.append(line)
        self.size += len(line)
        return self.example() if self.size >= self.target else None

    def example(self) -> Example:
        half = 100_000 if self.rng.random() < 0.1 else (self.target - 3) // 2
        first: list[int] = []
        second: list[int] = []
        for line in self.lines:
            fits = len(first) + len(line) < half and (self.back or not second)
            if not first or fits or (not second and len(first) < half and self.rng.random() < 0.5):
                first.extend(line)
            else:
                second.extend(line)
        first = first[: self.length - 2]
        second = second[: max(0, self.length - len(first) - 3)]
        self.lines = []
        self.size = 0
        self.target = self.rng.randint(5, self.length) if self.rng.random() < 0.05 else self.length
        return first, second, 0


def electra(documents: list[Document], length: int, rng: Random, back: bool = False) -> Iterator[Example]:
    """One pass over all documents, a blank line after each."""
    builder = ExampleBuilder(length, rng, back)
    for document in documents:
        for line in [*document, []]:
            example = builder.add_line(line)
            if example:
                yield example


# RoBERTa


def full_sentences(documents: list[Document], length: int, separator: int, within: bool) -> Iterator[Example]:
    """RoBERTa §4.2: whole sentences of one document after the other while they fit, a separator between two documents.

    With `within`, rows end with their document. No sentence may be longer than a row.
    """
    room = length - 2  # [CLS], [SEP]
    row: list[int] = []
    for document in documents:
        for sentence in document:
            if len(row) + len(sentence) > room:
                yield without_last(row, separator), [], 0
                row = []
            row.extend(sentence)
        row.append(separator)
        if within:
            yield without_last(row, separator), [], 0
            row = []
    if row:
        yield without_last(row, separator), [], 0


def without_last(row: list[int], separator: int) -> list[int]:
    """The row without a separator at its end, where its own [SEP] will stand."""
    return row[:-1] if row[-1] == separator else row


def blocks(
    documents: list[Document], size: int, end: int, within: bool, *, ends: bool = True, blanks: bool = True
) -> Iterator[list[int]]:
    """fairseq's blocks of at most `size` tokens of whole lines: "complete", or with `within` "complete_doc".

    Every line ends in `end`, a blank line after each document is a lone `end`, a line that is too long is kept whole.
    Without `ends` lines do not end in it, without `blanks` there are no blank lines.
    """
    blank = [end]
    block: list[int] = []
    for document in documents:
        for line in [*document, blank] if blanks else document:
            text = [*line, end] if ends and line is not blank else line
            if within and line is blank:
                if len(block) > 1:
                    yield block
                block = []
                continue
            if block and len(block) + len(text) > size:
                if not within or len(block) > 1:
                    yield block
                block = []
            block.extend(text)
    if len(block) > (1 if within else 0):
        yield block
