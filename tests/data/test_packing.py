from functools import cache, partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.data.batch import Batch
from encoders.data.example_table import count_row_tokens
from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.packing import PackedFormat, pack_examples
from encoders.data.stream import BatchStream, Phase, iter_eval_batches
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.tasks.classification import Classification
from encoders.text.tokenization import VocabInfo
from encoders.training import step
from encoders.utils.overrides import apply_changes
from encoders.utils.serialization import fingerprint_content, from_json_value, to_json_value
from tests.batches import EXAMPLE_FIELDS, TOKEN_FIELDS
from tests.data.streams import concatenate, prose, same, shapes_of, split_of

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order
PAD, CLS, SEP, MASK = 1, 2, 3, 4
CONTINUES = np.arange(100) % 3 == 2
CONTINUES[:5] = False
FACTS = VocabInfo(100, PAD, 0, CLS, SEP, MASK, (0, 1, 2, 3, 4), np.packbits(CONTINUES).tobytes(), most_frequent_id=6)
LENGTH, MOST = 72, 4
MODEL = EncoderConfig(
    vocab_size=100, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, embedding_size=8,
    max_positions=LENGTH, hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
PROSE = prose(14)
NEXT, ORDER = (SegmentPairs(second, short_seq_prob=0.6) for second in ("random", "swapped"))
WORDS = Masking(mask_rate=0.3, unit="word", max_ngram=3)


def stream_of(form, folder, batch=7, copies=None, split=PROSE):
    return BatchStream(
        split, FACTS, (Phase(until_step=1000, seq_length=LENGTH, batch_size=batch, format=form),), 0, copies, folder
    )


def unpacked(batch: Batch, pad: int = 0) -> Batch:
    """The examples of a packed batch, one a row, with the fields they had; `pad` is the token of padding."""
    length = batch.input_ids.shape[1]
    row, slot = np.nonzero(batch.example_mask)
    at = batch.cls_positions[row, slot][:, None] + np.arange(length)
    where = (row[:, None], np.minimum(at, length - 1))
    mine = (at < length) & (batch.example_ids[where] == slot[:, None] + 1)
    alone = {name: np.where(mine, getattr(batch, name)[where], np.int32(0)) for name in TOKEN_FIELDS}
    alone["example_ids"] = mine.astype(np.int32)
    alone["input_ids"] = np.where(mine, alone["input_ids"], np.int32(pad))
    alone |= {name: getattr(batch, name)[row, slot][:, None] for name in EXAMPLE_FIELDS}
    alone["cls_positions"] = np.zeros_like(alone["cls_positions"])
    return Batch(**alone, labels={name: label[row, slot][:, None] for name, label in batch.labels.items()})


# Rows


def test_the_largest_come_first_and_each_goes_where_least_room_is_left():
    row, slot = pack_examples(np.array([3, 8, 2, 5, 6, 1]), 10, 8)
    assert row.tolist() == [1, 0, 0, 2, 1, 1]  # 8 | 6 | 5 | 3 beside 6, which leaves 1; 2 beside 8; 1 beside 6 and 3
    assert slot.tolist() == [1, 0, 1, 0, 0, 2]


@given(st.lists(st.integers(3, 40), max_size=60), st.integers(1, 9))
@settings(deadline=None, derandomize=True)
def test_every_example_has_a_place_of_its_own_and_rows_are_not_overfull(sizes, most):
    sizes = np.array(sizes, np.int64)
    row, slot = pack_examples(sizes, 40, most)
    assert len(set(zip(row.tolist(), slot.tolist(), strict=True))) == len(sizes)
    if len(sizes):
        counts = np.bincount(row)
        assert (np.bincount(row, sizes) <= 40).all() and counts.min() >= 1 and counts.max() <= most
        assert all(sorted(slot[row == n].tolist()) == list(range(counts[n])) for n in range(len(counts)))
        filled = np.sort(np.bincount(row, sizes)[counts < most])
        assert len(filled) < 2 or filled[0] + filled[1] > 40  # else the second would have gone to the first


@pytest.mark.parametrize("form", [NEXT, ORDER, ElectraPairs(), FullSentences(within_document=True)])
def test_a_packed_table_holds_the_examples_of_its_format(form):
    examples = form.build_example_table(PROSE, range(PROSE.num_documents), LENGTH, 1, 2)
    rows = PackedFormat(form, MOST).build_example_table(PROSE, range(PROSE.num_documents), LENGTH, 1, 2)
    assert rows.dtype == examples.dtype and rows.shape[1:] == (MOST,) and len(rows) < len(examples)
    packed = rows[rows["a_end"] > rows["a_start"]]
    assert sorted(packed.tolist()) == sorted(examples.tolist())
    assert count_row_tokens(rows).sum() == count_row_tokens(examples).sum() and count_row_tokens(rows).max() <= LENGTH


def test_a_shard_without_examples_makes_no_row():
    split = split_of([[[5, 6]], [[7]]])
    assert PackedFormat(ORDER, MOST).build_example_table(split, range(2), LENGTH, 0, 0).shape == (0, MOST)


def test_rows_of_512_tokens_are_nearly_full():
    # Sentences of 25 tokens in documents of about 4,000, as in Wikipedia articles that are not stubs.
    rng = np.random.default_rng(0)
    sentence = lambda: [9] * int(rng.lognormal(3.1, 0.5) + 1)
    split = split_of([[sentence() for _ in range(int(rng.lognormal(4.6, 1)) + 2)] for _ in range(400)])
    padding = {}
    for form in (SegmentPairs("swapped"), PackedFormat(SegmentPairs("swapped"))):
        sizes = count_row_tokens(form.build_example_table(split, range(split.num_documents), 512, 0, 0))
        padding[type(form)] = 1 - sizes.mean() / 512
    assert padding[SegmentPairs] > 0.12 and padding[PackedFormat] < 0.01


# Batches


def test_packed_batches_have_the_fields_of_others(tmp_path):
    batch = stream_of(PackedFormat(ORDER, MOST), tmp_path).build_batch(0)
    assert shapes_of(batch) == {
        **dict.fromkeys(TOKEN_FIELDS, (7, LENGTH)),
        **dict.fromkeys([*EXAMPLE_FIELDS, "sentence_order"], (7, MOST)),
    }
    assert all(rows.dtype == np.int32 for rows in jax.tree.leaves(batch))
    assert batch.example_mask.sum() > 7 and len(np.unique(batch.example_index)) == 7 * MOST


def test_a_packed_row_by_hand(tmp_path):
    batch = stream_of(PackedFormat(ORDER, MOST), tmp_path).build_batch(0)
    for b in range(7):
        starts = batch.cls_positions[b][batch.example_mask[b] == 1].tolist()
        ends = [*starts[1:], (batch.example_ids[b] > 0).sum()]
        for n, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
            tokens, example, segments, positions = (getattr(batch, name)[b, start:end] for name in TOKEN_FIELDS)
            assert (example == n).all() and positions.tolist() == list(range(end - start))
            seps = np.flatnonzero(tokens == SEP)
            assert tokens[0] == CLS and len(seps) == 2 and seps[1] == end - start - 1
            assert segments.tolist() == [0] * (seps[0] + 1) + [1] * (seps[1] - seps[0])
        assert (batch.input_ids[b, ends[-1] :] == PAD).all()
        assert not any(getattr(batch, name)[b, ends[-1] :].any() for name in TOKEN_FIELDS[1:])


@pytest.mark.parametrize("form", [ORDER, FullSentences(within_document=True)])
def test_every_example_is_read_once_a_pass(form, tmp_path):
    apart, together = stream_of(form, tmp_path), stream_of(PackedFormat(form, MOST), tmp_path)
    seen = []
    for made in (apart, together):
        (phase,) = made.phases
        size = len(made.tables.get_table(phase.format, LENGTH, 0))
        batches = [unpacked(made.build_batch(at), PAD) for at in range(size // 7 + 1)]
        rows = concatenate(batches)
        first = rows.pass_index[:, 0] == 0
        ids = rows.example_index[first, 0]
        assert len(set(ids.tolist())) == len(ids)
        seen.append(sorted(map(tuple, rows.input_ids[first].tolist())))
    assert seen[0] == seen[1]


def test_unpacking_what_is_not_packed_changes_nothing(tmp_path):
    batch = stream_of(ORDER, tmp_path).build_batch(0)
    assert same(unpacked(batch, PAD), batch)


def test_packed_batches_depend_on_their_step_alone_and_are_shared_by_processes(tmp_path):
    form = PackedFormat(NEXT, MOST)
    alone = stream_of(form, tmp_path, batch=8)
    share = lambda n: lambda batch: np.arange(batch).reshape(2, -1)[n]
    halves = [BatchStream(PROSE, FACTS, alone.phases, 0, None, tmp_path / "other", share(n)) for n in (0, 1)]
    for at in (9, 0, 4):
        parts = [half.build_batch(at) for half in halves]
        assert same(concatenate(parts), alone.build_batch(at))


def test_held_out_rows_that_are_packed_hold_every_example_once(tmp_path):
    form = PackedFormat(ORDER, MOST)
    examples = count_row_tokens(ORDER.build_example_table(PROSE, range(PROSE.num_documents), LENGTH, 0, 0))
    batches = list(iter_eval_batches(PROSE, FACTS, Phase(1, LENGTH, 4, form), 4, 1000, tmp_path))
    assert sum(batch.example_mask.sum() for batch in batches) == len(examples)
    assert sum((batch.example_ids > 0).sum() for batch in batches) == examples.sum()


# What a model makes of them


OBJECTIVES = [
    pytest.param(
        *(NEXT, MaskedLM(Masking(mask_rate=0.3, dupe_factor=3), NextSentencePrediction())), marks=pytest.mark.live
    ),
    (ORDER, MaskedLM(WORDS, SentenceOrderPrediction())),
    (FullSentences(within_document=True), MaskedLM(Masking(dupe_factor=None))),
    (ElectraPairs(), ReplacedTokenDetection(generator_width=0.5)),
    (NEXT, Classification(("x", "y", "z"), head_dropout=0.0)),
]


@cache
def parameters(objective):
    """Random parameters, no bias 0 and no scale 1, so that one that is left out shows."""
    shapes = jax.eval_shape(lambda: step.init_params(0, objective.module(MODEL, FACTS)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32), shapes)


@partial(jax.jit, static_argnames="objective", compiler_options=QUICK)
def sums(params, batch, *, objective):
    seen = objective.corrupt(batch, FACTS, 3)
    return objective.module(MODEL, FACTS).apply({"params": params}, seen)


@pytest.mark.parametrize("form, objective", OBJECTIVES, ids=lambda value: type(value).__name__)
def test_examples_give_the_same_sums_packed_and_one_a_row(form, objective, tmp_path):
    batch = stream_of(PackedFormat(form, MOST), tmp_path, batch=5).build_batch(2)
    if "label" in objective.required_fields:
        labels = np.random.default_rng(0).integers(0, 3, batch.example_index.shape, np.int32) * batch.example_mask
        batch = batch.replace(labels={"label": labels})
    alone = unpacked(batch, PAD)
    assert len(alone.input_ids) > 5
    packed, apart = (sums(parameters(objective), rows, objective=objective) for rows in (batch, alone))
    assert set(packed) >= set(objective.loss_weights)
    jax.tree.map(partial(np.testing.assert_allclose, **CLOSE), packed, apart)


def test_held_out_rows_cut_short_give_the_same_sums_as_long_ones(tmp_path):
    objective, phase = MaskedLM(WORDS, SentenceOrderPrediction()), Phase(1, LENGTH, 9, ORDER, num_length_buckets=8)
    short = list(iter_eval_batches(PROSE, FACTS, phase, 9, 100, tmp_path))[2]
    missing = LENGTH - short.input_ids.shape[1]
    assert missing > 0
    long = short.replace(**{name: np.pad(getattr(short, name), ((0, 0), (0, missing))) for name in TOKEN_FIELDS})
    cut, whole = (sums(parameters(objective), rows, objective=objective) for rows in (short, long))
    jax.tree.map(partial(np.testing.assert_allclose, **CLOSE), cut, whole)


def test_no_token_reaches_the_other_examples_of_its_row(tmp_path):
    batch = stream_of(PackedFormat(ORDER, MOST), tmp_path, batch=5).build_batch(0)
    encoder = Encoder(MODEL)
    run = jax.jit(encoder.apply, compiler_options=QUICK)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), batch)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32), shapes)
    before = run(params, batch)
    for number in (1, 2):
        theirs = batch.example_ids == number
        other = np.where(theirs, 5 + (batch.input_ids + 7) % 90, batch.input_ids).astype(np.int32)
        after = run(params, batch.replace(input_ids=other))
        others = (batch.example_ids > 0) & ~theirs
        np.testing.assert_allclose(after[others], before[others], rtol=0, atol=1e-6)
        assert theirs.sum() > 5 and (np.abs(after - before).max(-1)[theirs] > 1e-3).mean() > 0.9


# As a value


@pytest.mark.parametrize(
    "wrong, message", [((PackedFormat(ORDER),), "PackedFormat"), ((ORDER, 0), "max_examples_per_row=0")]
)
def test_a_packing_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PackedFormat(*wrong)


def test_what_a_format_says_of_itself_its_packing_says():
    for form in (NEXT, ORDER, FullSentences(), ElectraPairs()):
        assert (PackedFormat(form).label_fields, PackedFormat(form).varies_by_pass) == (
            form.label_fields,
            form.varies_by_pass,
        )


def test_a_packed_phase_is_saved_read_back_and_set():
    phase = Phase(
        until_step=3, seq_length=LENGTH, batch_size=4, format=PackedFormat(SegmentPairs("swapped", short_seq_prob=0.2))
    )
    assert from_json_value(to_json_value(phase)) == phase
    (set_,) = apply_changes(
        (phase,), {"0": {"format": {"max_examples_per_row": "4", "format": {"short_seq_prob": "0.5"}}}}
    )
    assert set_.format == PackedFormat(SegmentPairs("swapped", short_seq_prob=0.5), max_examples_per_row=4)
    assert fingerprint_content(phase)["format"] == {
        "class": "PackedFormat",
        "format": {"class": "SegmentPairs", "negatives": "swapped", "short_seq_prob": 0.2},
    }
