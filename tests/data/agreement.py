"""Whether rows of a format and of an author's code are drawn alike: what is compared, and how far apart it may be."""

import math
import re
from itertools import groupby, pairwise
from random import Random

import numpy as np
from scipy.stats import ks_2samp

from encoders.data.example_table import count_row_tokens, measure_segments, rows_to_table
from encoders.data.store import Split
from encoders.objectives.masking import Masking
from tests.data import released
from tests.data.streams import CLS, SEP, split_of
from tests.texts import made_up

ERRORS = 4
RARE = math.erfc(ERRORS / math.sqrt(2))  # how often a normal number is that many standard errors off
PASSES = 10
LIMIT = 20  # max_predictions_per_seq
PAD, UNK, MASK = 0, 1, 4


# Documents


def places(split: Split) -> list[released.Document]:
    """The documents with the place of each token instead of its id, so that a row says where it comes from."""
    return [
        [list(range(*edges)) for edges in pairwise(split.get_sentence_offsets(number))]
        for number in range(split.num_documents)
    ]


def numbered(documents: list[list[str]]) -> tuple[list[released.Document], list[bool]]:
    """Documents of ids, and of each id whether it continues a word: of three letters, and of two more at a time."""
    names: dict[tuple[str, bool], int] = {}
    id_of = lambda piece, continues: names.setdefault((piece, continues), len(names) + 5)

    def sentence(text):
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        pieces = [(word[:3], *re.findall("..?", word[3:])) for word in words]
        return [id_of(piece, n > 0) for word in pieces for n, piece in enumerate(word)]

    read = [[sentence(text) for text in document] for document in documents]
    return read, [False] * 5 + [continues for _, continues in names]


def of_all_sizes(texts: list[list[str]]) -> list[list[str]]:
    """Of seven texts four are a document, two are one, one is one, and so is a sentence."""
    found = []
    for n in range(0, len(texts), 7):
        found += [sum(texts[n : n + 4], []), sum(texts[n + 4 : n + 6], []), texts[n + 6], texts[n][:1]]
    return found


DOCUMENTS, CONTINUES = numbered(of_all_sizes(made_up(210)))
SPLIT = split_of(DOCUMENTS)


def whole(form, split, length, number=0):
    return form.build_example_table(split, range(split.num_documents), length, 7, number)


# What is compared


def as_table(examples) -> np.ndarray:
    """Examples of places as the formats' tables have them; only starts and sizes count where segments have gaps."""
    span = lambda segment: (segment[0], segment[0] + len(segment)) if segment else (0, 0)
    return rows_to_table([(*span(a), *span(b), label, 0) for a, b, label in examples])


def rows_of(examples, split: Split) -> list[list[int]]:
    """The ids of examples of places, with special tokens."""
    ids, rows = split.tokens.tolist(), []
    for a, b, _ in examples:
        rows.append([CLS, *(ids[place] for place in a), SEP, *([*(ids[place] for place in b), SEP] if b else [])])
    return rows


def predictions(examples, split: Split, rng: Random) -> list[int]:
    """How many tokens the released masking chooses in each example."""
    known = {"limit": LIMIT, "special": (CLS, SEP), "mask": MASK, "vocabulary": 30522}
    return [len(released.masked_lm_predictions(row, rng, **known)[1]) for row in rows_of(examples, split)]


def owners(split: Split, table: np.ndarray) -> np.ndarray:
    """The documents that the segments of each row begin in, `[rows, 2]`."""
    starts = np.stack([table["a_start"], table["b_start"]], axis=1)
    return np.searchsorted(split.sentence_offsets[split.document_offsets], starts, side="right") - 1


def measured(table, masks, split: Split, length: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of one pass, by name: the two sums of each document whose ratio is compared."""
    document, other = owners(split, table).T
    size_a, size_b = measure_segments(table)
    size, label = count_row_tokens(table), table["label"]
    two, every = size_b > 0, np.ones(len(table))
    elsewhere, before = two & (other != document), two & (other == document) & (table["b_start"] < table["a_start"])
    sums = lambda values: np.bincount(document, values, minlength=split.num_documents)
    tokens = np.diff(split.sentence_offsets[split.document_offsets]) / 1000
    shares = {
        "label 1": label,
        "B from elsewhere": elsewhere,
        "B before A": before,
        "two segments": two,
        "full": size == length,
        "short": size < length * 3 / 4,
        "a third or less": size <= length / 3,
        "padding": 1 - size / length,
        "tokens": size,
        "masked": masks,
    }
    found = {
        "examples of 1000 tokens": (sums(every), tokens),
        "text used of 1000 tokens": (sums(size_a + size_b), tokens),
    }
    found |= {name: (sums(values), sums(every)) for name, values in shares.items()}
    for name, which in {"two": two, "label 0": two & (label == 0), "label 1": label == 1}.items():
        found |= {
            f"A, {name}": (sums(size_a * which), sums(which)),
            f"B, {name}": (sums(size_b * which), sums(which)),
            f"A squared, {name}": (sums(size_a**2 * which), sums(which)),
        }
    return found | {"A alone": (sums(size_a * ~two), sums(~two))}


def ratio(passes: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """A ratio of sums over passes and documents, and its standard error: linearised, each document on its own."""
    top, bottom = (np.array(side, float) for side in zip(*passes, strict=True))
    if not bottom.sum():
        return 0.0, 0.0
    value = top.sum() / bottom.sum()
    of_documents = len(passes) * np.var(top - value * bottom, axis=0, ddof=1)
    return value, math.sqrt(of_documents.sum()) / bottom.sum()


def compared(ours: list[dict], theirs: list[dict]) -> list[tuple[str, float, float, float]]:
    """Each statistic: its name, theirs, ours, and the standard error of their difference."""
    found = []
    for name in ours[0]:
        (mine, error), (given, other) = (ratio([each[name] for each in side]) for side in (ours, theirs))
        found.append((name, given, mine, math.hypot(error, other)))
    return found


def agrees(theirs: float, ours: float, error: float) -> bool:
    return abs(ours - theirs) <= ERRORS * error + 1e-9  # of what is no matter of chance, the rounding of sums


def assert_agreement(rows: list[tuple[str, float, float, float]]) -> None:
    lines = [f"{name}: released {theirs:.4f}, here {ours:.4f} +- {error:.4f}" for name, theirs, ours, error in rows]
    assert not [line for line, (_, *values) in zip(lines, rows, strict=True) if not agrees(*values)]


def one_each(tables: list[np.ndarray], split: Split, rng: Random) -> np.ndarray:
    """A row of each document in each pass, so that all are independent: segments' sizes, and both together."""
    rows = []
    for table in tables:
        document = owners(split, table)[:, 0].tolist()
        rows += [table[rng.choice(list(group))] for _, group in groupby(range(len(table)), document.__getitem__)]
    table = np.array(rows)
    return np.stack([*measure_segments(table), count_row_tokens(table)])


def distances(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """The Kolmogorov-Smirnov distance of each line, in units of what is allowed.

    By Dvoretzky, Kiefer and Wolfowitz, large samples of n and m independent values of one distribution are further
    apart than sqrt(ln(2 / p) / 2) sqrt(1 / n + 1 / m) in the share p of cases at most; p is here that of four standard
    errors. Whole numbers, and samples with as many values of each document, lie closer still.
    """
    allowed = math.sqrt(math.log(2 / RARE) / 2 * (1 / ours.shape[1] + 1 / theirs.shape[1]))
    return [ks_2samp(x, y, method="asymp").statistic / allowed for x, y in zip(ours, theirs, strict=True)]


def both(form, author, split: Split, length: int, passes: int = PASSES):
    """The tables of `form` and of `author(documents, rng)`, and what is measured of them, a pass each."""
    documents, quotas = places(split), Masking(max_predictions=LIMIT).count_predictions(np.arange(length + 1))
    tables, given, ours, theirs = [], [], [], []
    for number in range(passes):
        tables.append(table := whole(form, split, length, number))
        ours.append(measured(table, quotas[count_row_tokens(table)], split, length))
        rng = Random(number)
        examples = list(author(documents, rng))
        given.append(table := as_table(examples))
        theirs.append(measured(table, predictions(examples, split, rng), split, length))
    return tables, given, ours, theirs


def assert_same(form, author, split: Split, length: int) -> None:
    tables, given, ours, theirs = both(form, author, split, length)
    assert_agreement(compared(ours, theirs))
    assert max(distances(*(one_each(side, split, Random(0)) for side in (tables, given)))) < 1
