"""Minimal pairs such as BLiMP's: the share in which a run prefers the sentence that grammar allows.

BLiMP (Warstadt et al., 2020, https://arxiv.org/abs/1912.00582) has 67 paradigms of 1,000 pairs. Chance is 1/2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from encoders.costs.ledger import eval_param_shapes
from encoders.data.batch import HostOrDeviceArray
from encoders.data.row_files import RowError, iter_checked_records
from encoders.inference.predictor import Predictor
from encoders.inference.text_batch import TextBatch, list_lengths, measure_row
from encoders.measures.base import Measure, Measurement, check_path
from encoders.objectives.losses import cross_entropy
from encoders.objectives.masking import MaskedBatch
from encoders.run.run import Run
from encoders.text.tokenization import Tokenizer
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields

GROUP_COLUMNS = ("field", "uid")
GENERATOR_GROUP = "generator"  # ends the name of the score of ELECTRA's generator
BATCH_TOKENS = 4096  # of the longest rows
SHORT_LENGTHS = range(8, 32, 4)  # more lengths than a predictor has by default: sentences of BLiMP are short


@dataclass(frozen=True)
class MinimalPairs(Measure):
    """Share of minimal pairs whose good sentence has the higher score; a tie counts 1/2.

    `path` is a .jsonl file, or a .tsv or .csv file with a header, plain or compressed, with the keys good and bad. The
    keys field and uid, the name of a paradigm, may be missing. `pairs_per_paradigm` reads the first pairs of each uid;
    pairs without a uid, and with None all pairs, are read.

    A masked language model scores a sentence by its pseudo-log-likelihood: the sum of the log probabilities of its
    tokens, each masked in turn (Salazar et al., 2020, https://arxiv.org/abs/1910.14659). With the masking "word"
    the later tokens of the same word are masked too, so that they do not betray it (PLL-word-l2r of Kauf & Ivanova,
    2023, https://arxiv.org/abs/2305.10588). For a causal language model both are its log-likelihood.

    A discriminator scores a sentence by its verdicts: the sum over its tokens of the log probability that they are
    original, in one forward pass. [CLS] and [SEP] never count.

    Scores: `blimp`, of all pairs, and `blimp_NAME` of each field and each paradigm. NAME is the field or uid in lower
    case, each run of characters other than a-z, 0-9 and _ replaced by _. For a discriminator with a generator,
    `blimp_generator` is by the pseudo-log-likelihood of the generator.
    """

    path: str = ""
    pairs_per_paradigm: int | None = 60
    masking: Literal["token", "word"] = "token"

    name: ClassVar[str] = "blimp"

    def __post_init__(self):
        checks = (
            ("pairs_per_paradigm", lambda count: count is None or count >= 1, "at least 1 or None"),
            ("masking", lambda unit: unit in ("token", "word"), "token or word"),
        )
        check_fields(self, f"{self.name}.", checks)

    def list_files(self) -> tuple[Path]:
        return (check_path(self.path, self.name),)

    def find_problem(self, run: Run) -> str | None:
        params = eval_param_shapes(run.spec.model, run.spec.objective)
        if "replaced" in params or (hasattr(run.module, "compute_token_logits") and "generator" not in params):
            return None
        return f"it needs a masked-token or a replaced-token head, and {run.folder} has {', '.join(sorted(params))}"

    def compute(self, predictor: Predictor) -> Measurement:
        """Return the scores, and as items the value of each pair. Raises `UserError` before long work."""
        pairs = read_pairs(*self.list_files(), self.pairs_per_paradigm)
        groups = group_pairs(pairs)
        sentences, pair_sentences = encode_pairs(pairs, predictor.run, self.masking)
        predictor, params = make_batch_predictor(predictor, sentences), predictor.params
        items = {}
        if "replaced" in params:
            items[self.name] = compare_scores(sum_verdicts(predictor, sentences), pair_sentences)
        if "tokens" in params:
            name = f"{self.name}_{GENERATOR_GROUP}" if "generator" in params else self.name
            items[name] = compare_scores(sum_log_probabilities(predictor, sentences), pair_sentences)
        scores = {name: float(values.mean()) for name, values in items.items()}
        group_scores = {f"{self.name}_{group}": float(items[self.name][rows].mean()) for group, rows in groups.items()}
        return Measurement(scores | group_scores, items)


@dataclass(frozen=True)
class MinimalPair:
    """A good and a bad sentence, the location of their row, and the names of their groups by column."""

    location: str
    good: str
    bad: str
    groups: dict[str, str]


def read_pairs(path: Path, pairs_per_paradigm: int | None) -> list[MinimalPair]:
    """Return the first pairs of each paradigm, in the order of a file. Raises `RowError` for a file without rows."""
    pairs, counts = [], Counter()
    for row in iter_checked_records(path):
        groups = {column: str(row.values[column]) for column in GROUP_COLUMNS if row.values.get(column)}
        pair = MinimalPair(row.location, row.get_text("good"), row.get_text("bad"), groups)
        uid = groups.get("uid")
        counts[uid] += 1
        if uid is None or pairs_per_paradigm is None or counts[uid] <= pairs_per_paradigm:
            pairs.append(pair)
    return pairs


def group_pairs(pairs: Sequence[MinimalPair]) -> dict[str, list[int]]:
    """Return the indices of the pairs of each field and each paradigm, by their names in scores.

    Raises `RowError` for a name that a field and a paradigm of other pairs share, and for one that a score has.
    """
    by_column = {column: {} for column in GROUP_COLUMNS}
    for i, pair in enumerate(pairs):
        for column, label in pair.groups.items():
            by_column[column].setdefault(name_group(label), []).append(i)
    fields, paradigms = by_column.values()
    groups = fields | paradigms
    for name, rows in groups.items():
        if fields.get(name, rows) != rows:
            raise RowError(pairs[rows[0]].location, f"a field and a uid of other pairs are both {name}; rename one")
        if name == GENERATOR_GROUP:
            raise RowError(pairs[rows[0]].location, f"{name} is the name of another score; rename the field or uid")
    return groups


def name_group(label: str) -> str:
    """Return a field or a paradigm as it is in the names of scores.

    >>> name_group("S-selection (verbs)")
    's_selection_verbs_'
    """
    return re.sub(r"[^a-z0-9_]+", "_", label.lower())


@dataclass(frozen=True)
class EncodedSentence:
    """Token ids of a sentence, and for each token the end of what is masked with it: itself, or its word."""

    token_ids: tuple[int, ...]
    mask_ends: tuple[int, ...]


def encode_pairs(
    pairs: Sequence[MinimalPair], run: Run, masking: str
) -> tuple[list[EncodedSentence], Int[np.ndarray, "n 2"]]:
    """Return the distinct sentences, and of each pair the indices of its good and its bad one.

    Sentences of equal tokens are one, so that they tie. Raises `RowError` for a sentence without tokens, and for one
    that the model's positions do not hold.
    """
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    all_ids, all_offsets = run.tokenizer.encode_with_offsets(texts)
    indices, pair_sentences, max_length = {}, [], run.spec.model.max_positions
    for i, (text, ids, offsets) in enumerate(zip(texts, all_ids, all_offsets, strict=True)):
        location, length = pairs[i // 2].location, measure_row([ids], num_separators=1)
        if not ids:
            raise RowError(location, f"{text!r} gives no tokens")
        if length > max_length:
            raise RowError(location, f"a sentence has {length} tokens, and model.max_positions={max_length}")
        ends = find_word_ends(run.tokenizer, text, ids, offsets) if masking == "word" else range(1, len(ids) + 1)
        sentence = EncodedSentence(tuple(ids), tuple(ends))
        pair_sentences.append(indices.setdefault(sentence, len(indices)))
    return [*indices], np.array(pair_sentences).reshape(-1, 2)


def find_word_ends(
    tokenizer: Tokenizer, text: str, token_ids: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> list[int]:
    """Return for each token the end of its word, in tokens.

    A word is one of whole-word masking, cut where letters and digits meet other characters: byte-level BPE writes no
    mark before punctuation, and its words end there as those of BERT do.
    """
    starts_word, ends = tokenizer.vocab.compute_word_starts()[list(token_ids)], []
    for i in reversed(range(len(token_ids))):
        is_last = i + 1 == len(token_ids)
        is_cut = is_last or starts_word[i + 1] or is_word_boundary(text, offsets[i], offsets[i + 1])
        ends.append(i + 1 if is_cut else ends[-1])
    return ends[::-1]


def is_word_boundary(text: str, first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether the spans of two tokens are apart, or meet where letters or digits meet other characters."""
    (first_start, end), (start, _) = first, second
    if start < end or first_start == end:  # bytes of one character, or the space before a word as a token
        return False
    return start > end or not (text[end - 1].isalnum() and text[start : start + 1].isalnum())


@no_type_check  # jax builds it with leaves of other types
class MaskedSpans(TextBatch):
    """Rows of one text, in each of which the tokens from `starts [b]` to before `ends [b]` are masked, int32."""

    starts: Int[HostOrDeviceArray, "b"]
    ends: Int[HostOrDeviceArray, "b"]


def make_batch_predictor(predictor: Predictor, sentences: Sequence[EncodedSentence]) -> Predictor:
    """Return a predictor with larger batches, and with more of the short lengths, for the sentences."""
    max_positions = predictor.config.max_positions
    lengths = sorted({*list_lengths(max_positions), *(n for n in SHORT_LENGTHS if n < max_positions)})
    longest = max(len(sentence.token_ids) for sentence in sentences) + 2
    return Predictor(predictor.run, predictor.params, max(BATCH_TOKENS // longest, 1), lengths)


def sum_log_probabilities(predictor: Predictor, sentences: Sequence[EncodedSentence]) -> Float[np.ndarray, "n"]:
    """Return the pseudo-log-likelihood of each sentence, in nats."""
    spans = [(i, start, end) for i, each in enumerate(sentences) for start, end in enumerate(each.mask_ends)]
    spans = np.array(spans, np.int32) + [0, 1, 1]  # behind [CLS]
    rows = [[sentences[i].token_ids] for i in spans[:, 0]]
    module, mask_id, sums = predictor.run.module, predictor.run.vocab.mask_id, np.zeros(len(sentences))
    for indices, batch in predictor.iter_batches(rows):
        owners, starts, ends = spans[indices].T
        num_unused = (0, len(batch.lengths) - len(indices))
        arrays = {name: np.pad(x, num_unused).astype(np.int32) for name, x in (("starts", starts), ("ends", ends))}
        masked = MaskedSpans(batch.input_ids, batch.lengths, batch.first_lengths, **arrays)
        values = predictor.compute(score_masked_tokens, masked, module, mask_id)
        np.add.at(sums, owners, values[: len(indices)])
    return sums


def score_masked_tokens(params: dict, batch: MaskedSpans, module, mask_id: int) -> Float[Array, "b"]:
    """Return the log probability of the first token of each row's masked span, over the whole vocabulary."""
    rows, places, positions = batch.to_batch(), jnp.arange(batch.input_ids.shape[1]), batch.starts[:, None]
    is_masked = (places >= positions) & (places < batch.ends[:, None])
    labels = jnp.take_along_axis(rows.input_ids, positions, axis=1)
    masked_batch = MaskedBatch(
        **rows.replace(input_ids=jnp.where(is_masked, mask_id, rows.input_ids)).get_arrays(),
        clean_ids=rows.input_ids,
        masked_positions=positions,
        masked_labels=labels,
        masked_weights=jnp.ones(positions.shape, jnp.float32),
    )
    logits = module.apply({"params": params}, masked_batch, method="compute_token_logits")
    return -cross_entropy(logits, labels)[:, 0]


def sum_verdicts(predictor: Predictor, sentences: Sequence[EncodedSentence]) -> Float[np.ndarray, "n"]:
    """Return the log probability that all tokens of each sentence are original, each judged by itself, in nats."""
    sums = np.zeros(len(sentences))
    for indices, batch in predictor.iter_batches([[sentence.token_ids] for sentence in sentences]):
        values = predictor.compute(score_original_tokens, batch, predictor.run.module)
        sums[indices] = values[: len(indices)]
    return sums


def score_original_tokens(params: dict, batch: TextBatch, module) -> Float[Array, "b"]:
    """Return the sum of the log probabilities that the tokens of each row, [CLS] and [SEP] aside, are original."""
    logits = module.apply({"params": params}, batch.to_batch(), method="compute_replaced_logits")
    places = jnp.arange(batch.input_ids.shape[1])
    is_word = (places > 0) & (places < batch.lengths[:, None] - 1)
    return jnp.where(is_word, jax.nn.log_sigmoid(-logits), 0).sum(1)


def compare_scores(
    sentence_scores: Float[np.ndarray, "n"], pair_sentences: Int[np.ndarray, "m 2"]
) -> Float[np.ndarray, "m"]:
    """Return 1 for each pair whose good sentence scores higher, 1/2 for a tie, else 0.

    Raises `UserError` for scores that are not numbers.
    """
    if not np.isfinite(sentence_scores).all():
        raise UserError("blimp: a score is not a finite number; the parameters of the run are damaged or diverged")
    good, bad = sentence_scores[pair_sentences].T
    return np.where(good == bad, 0.5, (good > bad).astype(float))
