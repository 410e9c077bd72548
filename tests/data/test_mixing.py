from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from encoders.data.formats import FullSentences, SegmentPairs
from encoders.data.mixing import MixedFormat, iter_weighted_documents
from encoders.data.packing import PackedFormat
from encoders.data.prepare import prepare_store
from encoders.data.spec import PretrainingData
from encoders.data.stream import BatchStream, ExampleTables, Phase, iter_eval_batches
from encoders.text.tokenization import TokenizerSpec
from tests.refusals import raises_naming
from tests.texts import write


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of three corpora with 30, 20 and 10 documents."""
    home = tmp_path_factory.mktemp("mixed")
    files = [write(home / f"{n}.txt", documents=count, seed=n) for n, count in enumerate((30, 20, 10))]
    return prepare_store(
        PretrainingData(
            tuple(map(str, files)), TokenizerSpec(vocab_size=300), heldout_fraction=0.01, store_dir=str(home / "stores")
        )
    )


def owners(store, form, number):
    """How many of a pass's examples begin in each corpus."""
    split = store.train_split
    table = form.build_example_table(split, range(split.num_documents), 32, 0, number)
    starts = np.asarray(split.sentence_offsets)[np.asarray(split.document_offsets)]
    document = np.searchsorted(starts, table["a_start"], side="right") - 1
    return [int(np.isin(document, list(corpus)).sum()) for corpus in split.corpus_ranges]


def test_the_documents_of_each_corpus_follow_one_another(store):
    corpora = store.train_split.corpus_ranges
    assert [corpus.start for corpus in corpora[1:]] == [corpus.stop for corpus in corpora[:-1]]
    assert sum(map(len, corpora)) == store.train_split.num_documents
    held = [len(corpus) for corpus in store.eval_splits[0].corpus_ranges]
    assert [len(corpus) for corpus in corpora] == [30 - held[0], 20 - held[1], 10 - held[2]]


@pytest.mark.parametrize("form", [FullSentences(within_document=True), SegmentPairs("swapped", short_seq_prob=0.0)])
def test_an_epoch_has_each_corpus_as_often_as_its_weight_says(store, form):
    once = owners(store, MixedFormat(form, (1, 1, 1)), 0)
    assert owners(store, MixedFormat(form, (1, 0, 2)), 0)[1] == 0
    twice = owners(store, MixedFormat(form, (1, 0, 2)), 0)
    assert twice[0] == once[0]
    assert twice[2] == 2 * once[2] if not form.varies_by_pass else 1.6 * once[2] < twice[2] < 2.4 * once[2]


def test_what_comes_twice_is_cut_anew(store):
    split, form = store.train_split, MixedFormat(SegmentPairs("swapped"), (0, 0, 2))
    table = form.build_example_table(split, range(split.num_documents), 32, 0, 0)
    again = form.format.build_example_table(split, split.corpus_ranges[2], 32, 0, 0)
    assert np.array_equal(table[: len(again)], again) and not np.array_equal(table[len(again) :][: len(again)], again)


@pytest.mark.parametrize("weight", [0.25, 0.3, 0.7, 1.0, 2.5])
def test_over_many_passes_every_document_comes_equally_often(weight):
    counts = Counter(
        d for number in range(40) for _, some in iter_weighted_documents(range(5, 18), weight, number) for d in some
    )
    wanted = 40 * Fraction(str(weight))
    assert set(counts) == set(range(5, 18)) and all(abs(count - wanted) <= 1 for count in counts.values())


def test_a_stream_of_a_mixture_is_that_of_its_tables(store, tmp_path):
    phase = Phase(40, 32, 4, PackedFormat(MixedFormat(SegmentPairs("swapped"), (0.5, 0, 1)), max_examples_per_row=2))
    stream = BatchStream(store.train_split, store.vocab, (phase,), 0, 10, tmp_path)
    assert phase.format.varies_by_pass
    tokens = np.concatenate([stream.build_batch(step).input_ids.ravel() for step in range(40)])
    skipped = store.train_split.corpus_ranges[1]
    edges = np.asarray(store.train_split.sentence_offsets)[np.asarray(store.train_split.document_offsets)]
    only = set(np.asarray(store.train_split.tokens[edges[skipped.start] : edges[skipped.stop]]).tolist())
    rest = np.concatenate(
        [store.train_split.tokens[: edges[skipped.start]], store.train_split.tokens[edges[skipped.stop] :]]
    )
    assert not (only - set(rest.tolist())) & set(tokens.tolist())


def test_every_document_comes_although_masks_are_static(store, tmp_path):
    # One copy of the masks; what a weight leaves out in one epoch comes in another all the same.
    form = MixedFormat(FullSentences(within_document=True), (0.25, 0.25, 0.25))
    tables = ExampleTables(tmp_path, store.train_split, 0, 1)
    starts = {start for epoch in range(4) for start in tables.get_table(form, 32, epoch)["a_start"].tolist()}
    whole = form.format.build_example_table(store.train_split, range(store.train_split.num_documents), 32, 0, 0)
    assert starts == set(whole["a_start"].tolist()) and len(tables.get_table(form, 32, 0)) < len(whole) / 2


def test_what_is_held_out_is_read_whole(store, tmp_path):
    phase = Phase(
        9, 32, 4, PackedFormat(MixedFormat(FullSentences(within_document=True), (0.1, 0, 0.1)), max_examples_per_row=3)
    )
    plain = Phase(9, 32, 4, PackedFormat(FullSentences(within_document=True), max_examples_per_row=3))
    batches = [
        list(iter_eval_batches(store.eval_splits[0], store.vocab, each, 4, 99, tmp_path)) for each in (phase, plain)
    ]
    assert len(batches[0]) == len(batches[1]) > 0
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(*batches, strict=True))


def test_a_store_that_does_not_tell_its_corpora_apart_says_what_to_do(store):
    old = replace(store.train_split, corpus_ranges=())
    with raises_naming(ValueError, "corpus", "remove the store"):
        MixedFormat(FullSentences(), (1, 1, 1)).build_example_table(old, range(old.num_documents), 32, 0, 0)


@pytest.mark.parametrize("weights", [(), (0, 0), (1, -1), (float("nan"),)])
def test_weights_that_cannot_be_are_refused(weights):
    with raises_naming(ValueError, f"corpus_weights={weights!r} ", "0"):
        MixedFormat(FullSentences(), weights)


def test_there_is_a_weight_for_each_item_of_the_corpus(store):
    split = store.train_split
    with raises_naming(ValueError, "corpus_weights=(1, 2) ", "3 corpora"):
        MixedFormat(FullSentences(), (1, 2)).build_example_table(split, range(split.num_documents), 32, 0, 0)


def test_packed_rows_are_made_of_a_mixture_and_not_the_other_way_round():
    with raises_naming(ValueError, "MixedFormat", "PackedFormat"):
        MixedFormat(PackedFormat(FullSentences()), (1,))
