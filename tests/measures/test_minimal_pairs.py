"""Minimal pairs: scores of sentences beside plain computations, groups, ties, and the files that are refused."""

import csv
import gzip
import json
import lzma
import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import encoders
from encoders.data.batch import build_single_example_batch
from encoders.exchange.convert import export_run
from encoders.experiment import RunSpec
from encoders.measures import minimal_pairs
from encoders.measures.base import load_or_measure
from encoders.measures.minimal_pairs import (
    MinimalPair,
    MinimalPairs,
    encode_pairs,
    find_word_ends,
    sum_log_probabilities,
    sum_verdicts,
)
from encoders.model.layers import CausalSelfAttention
from encoders.objectives.causal_lm import CausalLM
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import MaskedBatch
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.restored_tokens import ReplaceMLM
from encoders.run.run import Run
from encoders.tasks.classification import Classification
from encoders.text.tokenization import load_tokenizer
from encoders.utils.errors import UserError
from tests import task_examples
from tests.inference.small_runs import BERT, ELECTRA
from tests.networks import write_random_run
from tests.refusals import raises_naming

SENTENCES = ("Tan ber, mutrono here.", "who sononart tan-ber?", "what", "nonarts son tin (what)!")
PAIRS = [
    {"good": SENTENCES[0], "bad": SENTENCES[1], "field": "Word order", "uid": "Case-1"},
    {"good": SENTENCES[2], "bad": SENTENCES[3], "field": "Word order", "uid": "case_2"},
    {"good": "tan", "bad": "TAN", "field": "case", "uid": "case_2"},  # a tie: the vocabulary has no capitals
    {"good": SENTENCES[3], "bad": SENTENCES[0], "field": "case", "uid": "case_2"},
]
CAUSAL = replace(BERT, attention=CausalSelfAttention)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def open_run(home):
    """Makes a run of random parameters, and returns its folder."""
    tokenizer = load_tokenizer(task_examples.vocabulary(home))

    def make(name, objective, model=BERT):
        if not (home / name).exists():
            write_random_run(home / name, RunSpec(name=name, model=model, objective=objective), tokenizer)
        return home / name

    return make


@pytest.fixture(scope="module")
def masked_lm(open_run):
    return encoders.load(open_run("mlm", MaskedLM()))


@pytest.fixture(scope="module")
def electra(open_run):
    return encoders.load(open_run("electra", ReplacedTokenDetection(), ELECTRA))


def write_rows(path, rows=PAIRS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def encode(predictor, texts, masking="token"):
    """The texts as the measure encodes them."""
    pairs = [MinimalPair("", text, text, {}) for text in texts]
    sentences, _ = encode_pairs(pairs, predictor.run, masking)
    assert len(sentences) == len(texts)
    return sentences


def list_masked(predictor, text, unit):
    """For every token of a text, the positions in its row that are masked with it, found from its characters."""
    _, (offsets,) = predictor.run.tokenizer.encode_with_offsets([text])
    words = [word.span() for word in re.finditer(r"[^\W_]+|[^\w\s]", text)]
    owners = [next(i for i, (start, end) in enumerate(words) if start <= first < end) for first, _ in offsets]
    later = lambda i: [j for j in range(i, len(owners)) if j == i or (unit == "word" and owners[j] == owners[i])]
    return [[j + 1 for j in later(i)] for i in range(len(owners))]


@partial(jax.jit, static_argnames=("module", "method"))
def apply_module(module, params, batch, method):
    return module.apply({"params": params}, batch, method=method)


def apply(predictor, batch, method):
    batch = jax.tree.map(jnp.asarray, batch)
    return np.asarray(apply_module(predictor.run.module, predictor.params, batch, method))


@cache
def loop_over_tokens(predictor, text, unit="token"):
    """The pseudo-log-likelihood of a text, each of its tokens in a row of its own, which is not padded."""
    run, total = predictor.run, 0.0
    ids = [run.vocab.cls_id, *run.tokenizer.encode_batch([text])[0], run.vocab.sep_id]
    for masked in list_masked(predictor, text, unit):
        shown = np.array([ids])
        shown[0, masked] = run.vocab.mask_id
        fields = build_single_example_batch(shown).get_arrays()
        position, label = np.array([masked[:1]]), ids[masked[0]]
        batch = MaskedBatch(
            **fields,
            clean_ids=np.array([ids]),
            masked_positions=position,
            masked_labels=np.array([[label]]),
            masked_weights=np.ones((1, 1), np.float32),
        )
        total += log_softmax(apply(predictor, batch, "compute_token_logits"), axis=-1)[0, 0, label]
    return total


@cache
def judge_tokens(predictor, text):
    """The log probability that all tokens of a text are original, from a row that is not padded."""
    run = predictor.run
    ids = np.array([[run.vocab.cls_id, *run.tokenizer.encode_batch([text])[0], run.vocab.sep_id]])
    apply = jax.jit(
        lambda batch: run.module.apply({"params": predictor.params}, batch, method="compute_replaced_logits")
    )
    p_replaced = 1 / (1 + np.exp(-np.asarray(apply(build_single_example_batch(ids)), np.float64)))
    return np.log(1 - p_replaced[0, 1:-1]).sum()


@pytest.mark.parametrize("unit", ["token", "word"])
def test_the_pseudo_log_likelihood_is_that_of_a_loop_that_masks_one_token_at_a_time(masked_lm, unit):
    expected = [loop_over_tokens(masked_lm, text, unit) for text in SENTENCES]
    np.testing.assert_allclose(
        sum_log_probabilities(masked_lm, encode(masked_lm, SENTENCES, unit)), expected, rtol=1e-5
    )


def test_masks_of_whole_words_and_of_tokens_give_other_scores_only_to_words_of_several_tokens(masked_lm):
    assert [len(ids) for ids in masked_lm.run.tokenizer.encode_batch(["what", "mutrono"])][0] == 1
    tokens, words = (
        sum_log_probabilities(masked_lm, encode(masked_lm, ["what", "mutrono"], unit)) for unit in ("token", "word")
    )
    assert tokens[0] == pytest.approx(words[0], rel=1e-6) and abs(tokens[1] - words[1]) > 1e-3


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "character"])
def test_a_word_ends_where_letters_and_digits_do(kind, home):
    tokenizer = load_tokenizer(task_examples.vocabulary(home, kind), kind=kind)
    text = "Mutrono, tan-ber mutt's (nonart) é2 ☃!"
    (ids,), (offsets,) = tokenizer.encode_with_offsets([text])
    words = [match.span() for match in re.finditer(r"[^\W_]+|[^\w\s]", text)]
    ends = find_word_ends(tokenizer, text, ids, offsets)
    owners = [[i for i, (start, end) in enumerate(words) if start <= first < end] for first, _ in offsets]
    if kind == "character":  # every token is a word, in whole-word masking too
        assert ends == [*range(1, len(ids) + 1)]
        return
    assert ends == [max(j for j, owner in enumerate(owners) if owner == mine) + 1 for mine in owners]
    assert len({*ends}) == len(words) < len(ids)


def test_the_score_of_a_causal_language_model_is_its_log_likelihood(open_run):
    predictor = encoders.load(open_run("causal", CausalLM(), CAUSAL))
    run, expected = predictor.run, []
    for text in SENTENCES:
        ids = np.array([[run.vocab.cls_id, *run.tokenizer.encode_batch([text])[0], run.vocab.sep_id]])
        batch = jax.tree.map(jnp.asarray, build_single_example_batch(ids))
        rows = run.spec.objective.corrupt(batch, run.vocab, 0)
        log_probabilities = log_softmax(apply(predictor, rows, "compute_token_logits"), axis=-1)[0]
        expected.append(sum(log_probabilities[i, ids[0, i + 1]] for i in range(ids.shape[1] - 2)))
    for unit in ("token", "word"):
        scores = sum_log_probabilities(predictor, encode(predictor, SENTENCES, unit))
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_the_verdicts_of_a_discriminator_are_those_of_single_sentences(electra):
    expected = [judge_tokens(electra, text) for text in SENTENCES]
    np.testing.assert_allclose(sum_verdicts(electra, encode(electra, SENTENCES)), expected, rtol=1e-5)


def test_scores_are_shares_of_all_pairs_of_fields_and_of_paradigms_and_ties_count_half(masked_lm, tmp_path):
    measurement = MinimalPairs(str(write_rows(tmp_path / "pairs.jsonl"))).compute(masked_lm)
    sums = {text: loop_over_tokens(masked_lm, text) for text in SENTENCES}
    values = [0.5 if pair["bad"] == "TAN" else float(sums[pair["good"]] > sums[pair["bad"]]) for pair in PAIRS]
    assert 0 in values and 1 in values
    assert measurement.items.keys() == {"blimp"} and measurement.items["blimp"].tolist() == values
    assert measurement.scores == {
        "blimp": np.mean(values),
        "blimp_word_order": np.mean(values[:2]),
        "blimp_case": np.mean(values[2:]),
        "blimp_case_1": values[0],
        "blimp_case_2": np.mean(values[1:]),
    }


def test_a_discriminator_is_scored_by_its_verdicts_and_beside_them_by_its_generator(electra, tmp_path):
    measurement = MinimalPairs(str(write_rows(tmp_path / "pairs.jsonl"))).compute(electra)
    for name, score in (("blimp", judge_tokens), ("blimp_generator", loop_over_tokens)):
        sums = [[score(electra, pair[key]) for key in ("good", "bad")] for pair in PAIRS]
        values = [0.5 if good == bad else float(good > bad) for good, bad in sums]
        assert measurement.items[name].tolist() == values
        assert measurement.scores[name] == np.mean(values)
    assert measurement.scores["blimp_case_1"] == measurement.items["blimp"][0]
    assert not [name for name in measurement.scores if name.startswith("blimp_generator_")]


def test_a_discriminator_without_a_generator_has_no_score_of_one(open_run, tmp_path):
    predictor = encoders.load(open_run("alone", ReplacedTokenDetection(generator_width=None), ELECTRA))
    measurement = MinimalPairs(str(write_rows(tmp_path / "pairs.jsonl"))).compute(predictor)
    assert measurement.items.keys() == {"blimp"} and "blimp_generator" not in measurement.scores


def test_a_measurement_is_computed_once_and_read_again_from_the_folder_of_the_run(open_run, tmp_path, monkeypatch):
    folder, measure = open_run("kept", MaskedLM()), MinimalPairs(str(write_rows(tmp_path / "pairs.jsonl")))
    first = load_or_measure(folder, [measure])["blimp"]
    monkeypatch.setattr(minimal_pairs, "sum_log_probabilities", None)
    again = load_or_measure(folder, [measure])["blimp"]
    assert again.scores == first.scores and again.items["blimp"].tolist() == first.items["blimp"].tolist()


@pytest.mark.parametrize("objective", [Classification(("a", "b")), ReplaceMLM()])
def test_a_run_without_a_head_for_tokens_of_its_own_cannot_be_measured(objective, open_run, tmp_path):
    """The network of Replace MLM fills no masks: its generator does."""
    folder = open_run(type(objective).__name__, objective, BERT if isinstance(objective, Classification) else ELECTRA)
    problem = MinimalPairs(str(tmp_path)).find_problem(Run.open(folder))
    assert "masked-token" in problem and str(folder) in problem


@pytest.mark.parametrize("name, objective, model", [("mlm", MaskedLM(), BERT), ("electra", None, ELECTRA)])
def test_a_run_with_a_masked_token_or_a_replaced_token_head_can_be_measured(name, objective, model, open_run):
    folder = open_run(name, objective or ReplacedTokenDetection(), model)
    assert MinimalPairs().find_problem(Run.open(folder)) is None


# Files


def write_csv(path, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*PAIRS[0]], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL)
        writer.writeheader()
        writer.writerows(PAIRS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.jsonl.gz", "a.csv", "a.tsv", "a.tsv.xz"])
def test_pairs_are_the_same_in_every_form_of_file(name, tmp_path):
    plain = tmp_path / name.removesuffix(".xz").removesuffix(".gz")
    if ".jsonl" in name:
        write_rows(plain)
    else:
        write_csv(plain, "\t" if ".tsv" in name else ",")
    for suffix, module in ((".xz", lzma), (".gz", gzip)):
        if name.endswith(suffix):
            (tmp_path / name).write_bytes(module.compress(plain.read_bytes()))
    pairs = minimal_pairs.read_pairs(tmp_path / name, None)
    assert [{"good": pair.good, "bad": pair.bad} | pair.groups for pair in pairs] == PAIRS


def test_the_first_pairs_of_each_paradigm_are_read_and_all_pairs_without_one(tmp_path):
    rows = [{"good": f"tan {i}", "bad": "ber"} | ({"uid": f"u{i % 2}"} if i < 8 else {}) for i in range(12)]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    read = lambda count: [int(pair.good[4:]) for pair in minimal_pairs.read_pairs(path, count)]
    assert read(2) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert read(None) == [*range(12)]


@pytest.mark.parametrize(
    "rows, values",
    [
        ([PAIRS[0], {"good": "tan", "field": "a"}], ("2", "bad")),
        ([PAIRS[0], PAIRS[0] | {"bad": " "}], ("2", "bad")),
        ([PAIRS[0], PAIRS[0] | {"good": 3}], ("2", "good=3")),
        ([], ("no rows",)),
        ([PAIRS[0], {"good": "tan", "bad": "tan " * 70}], ("2", "72", "model.max_positions=64")),
        ([PAIRS[0], {"good": "\u200b", "bad": "tan"}], ("2", "no tokens")),
        ([PAIRS[0] | {"uid": "word ORDER"}, PAIRS[1]], ("1", "word_order")),
        ([PAIRS[0], PAIRS[1] | {"uid": "Generator"}], ("2", "generator")),
    ],
)
def test_rows_that_cannot_be_scored_are_named_before_anything_is_computed(
    rows, values, masked_lm, tmp_path, monkeypatch
):
    monkeypatch.setattr(minimal_pairs, "sum_log_probabilities", None)
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    lines = (f"{path}:{values[0]}", *values[1:]) if rows else (path, *values)
    with raises_naming(UserError, *lines):
        MinimalPairs(str(path)).compute(masked_lm)


@pytest.mark.parametrize(
    "name, content, values",
    [
        ("a.html", b"tan", (".html", ".jsonl", ".tsv", ".csv")),
        ("a.jsonl", b"{", (":1",)),
        ("a.tsv", b"good\tbad\ntan\tber\nber\n", (":3", "good, bad")),
        ("a.jsonl.xz", b"tan", (".xz",)),
    ],
)
def test_files_that_cannot_be_read_are_named(name, content, values, tmp_path):
    (tmp_path / name).write_bytes(content)
    with raises_naming(UserError, tmp_path / name, *values):
        minimal_pairs.read_pairs(tmp_path / name, None)


def test_a_field_and_a_paradigm_of_the_same_pairs_may_share_a_name(masked_lm, tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [PAIRS[0] | {"field": "a", "uid": "A"}])
    assert MinimalPairs(str(path)).compute(masked_lm).scores.keys() == {"blimp", "blimp_a"}


@pytest.mark.parametrize("values", [{"path": ""}, {"path": "missing.jsonl"}])
def test_data_that_is_not_there_is_named(values):
    with raises_naming(UserError, "blimp", values["path"]):
        MinimalPairs(**values).list_files()


@pytest.mark.parametrize("values", [{"pairs_per_paradigm": 0}, {"masking": "words"}])
def test_settings_out_of_range_are_refused(values):
    ((name, value),) = values.items()
    with raises_naming(UserError, f"blimp.{name}", value):
        MinimalPairs(**values)


def test_parameters_that_are_not_numbers_give_no_score(open_run, tmp_path):
    predictor = encoders.load(open_run("mlm", MaskedLM()))
    predictor.params = jax.tree.map(lambda leaf: leaf * np.nan, predictor.params)
    with raises_naming(UserError, "finite"):
        MinimalPairs(str(write_rows(tmp_path / "pairs.jsonl"))).compute(predictor)


@pytest.mark.live
def test_transformers_gives_an_exported_run_the_same_pseudo_log_likelihoods(masked_lm, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    export_run(masked_lm.run.folder, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    for unit in ("token", "word"):
        expected = []
        for text in SENTENCES:
            encoding = tokenizer(text, return_tensors="pt")
            ids, words, total = encoding["input_ids"], encoding.word_ids(), 0.0
            for i in range(1, ids.shape[1] - 1):
                shown = ids.clone()
                shown[0, [j for j in range(i, len(words)) if j == i or unit == "word" and words[j] == words[i]]] = (
                    tokenizer.mask_token_id
                )
                with torch.no_grad():
                    total += model(shown).logits[0, i].double().log_softmax(-1)[ids[0, i]].item()
            expected.append(total)
        scores = sum_log_probabilities(masked_lm, encode(masked_lm, SENTENCES, unit))
        np.testing.assert_allclose(scores, expected, rtol=1e-4)
