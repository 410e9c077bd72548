"""Sentence similarity: beside scipy on the vectors of a predictor, set by set, and the files that are refused."""

import numpy as np
import pytest
from scipy.stats import spearmanr

import encoders
from encoders.experiment import RunSpec
from encoders.measures.base import load_or_measure
from encoders.measures.sts import SentenceSimilarity
from encoders.tasks.classification import Classification
from encoders.text.tokenization import load_tokenizer
from encoders.utils.errors import UserError
from tests import task_examples, texts
from tests.inference.small_runs import BERT
from tests.networks import write_random_run
from tests.refusals import raises_naming

SENTENCES = [sentence for document in texts.made_up(4, seed=5) for sentence in document][:20]
SCORES = [3.5, 0.0, 5.0, 2.25, 1.0, 4.0, 2.25, 0.5]
PAIRS = [*zip(SCORES, SENTENCES, SENTENCES[1:], strict=False)]
SICK_HEADER = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"


@pytest.fixture(scope="module")
def predictor(folder):
    return encoders.load(folder)


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_semeval(path, pairs, *more):
    return write(path, ["\t".join(map(str, (*pair, *more))) for pair in pairs])


def write_sick(path, pairs):
    rows = [f"{i}\t{first}\t{second}\t{score}\tNEUTRAL" for i, (score, first, second) in enumerate(pairs)]
    return write(path / "sick" / "SICK_test_annotated.txt", [SICK_HEADER, *rows])


def write_glue(path, pairs):
    rows = [f"{i}\tnews\t{first}\t{second}\t{score}" for i, (score, first, second) in enumerate(pairs)]
    return write(path, ["index\tgenre\tsentence1\tsentence2\tscore", *rows])


def correlate(predictor, pairs, pooling="mean", layer=-1):
    """Spearman's correlation of the cosines of pairs, encoded one by one, with their scores."""
    cosines = []
    for _, *pair in pairs:
        first, second = predictor.embed(pair, pooling, layer)
        cosines.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    return pytest.approx(spearmanr(cosines, [score for score, *_ in pairs]).statistic)


@pytest.mark.parametrize("pooling, layer", [("mean", -1), ("cls", -1), ("mean", 1)])
def test_the_score_is_the_rank_correlation_of_the_cosines_of_a_predictors_vectors(pooling, layer, predictor, tmp_path):
    path = write_glue(tmp_path / "dev.tsv", PAIRS)
    measurement = SentenceSimilarity(str(path), pooling, layer).compute(predictor)
    assert measurement.scores == {"sts": correlate(predictor, PAIRS, pooling, layer)} and not measurement.items


def test_the_files_of_a_year_are_ranked_together_and_the_sets_are_averaged(predictor, tmp_path):
    write_semeval(tmp_path / "2012" / "b.test.tsv", PAIRS[:4])
    write_semeval(tmp_path / "2012" / "a.test.tsv", PAIRS[4:], "a source")
    write_semeval(tmp_path / "2012" / "a.train.tsv", [(0, "not", "read")])
    write_semeval(tmp_path / "2015" / "a.test.tsv", PAIRS[2:6])
    write_sick(tmp_path, PAIRS[1:])
    write_glue(tmp_path / "STS-B" / "dev.tsv", PAIRS[:5])
    sets = {"sts_2012": PAIRS[4:] + PAIRS[:4], "sts_2015": PAIRS[2:6], "sts_sick": PAIRS[1:], "sts_b": PAIRS[:5]}
    scores = SentenceSimilarity(str(tmp_path)).compute(predictor).scores
    assert {name: score for name, score in scores.items() if name != "sts"} == {
        name: correlate(predictor, pairs) for name, pairs in sets.items()
    }
    assert scores["sts"] == pytest.approx(np.mean([scores[name] for name in sets]))
    files = SentenceSimilarity(str(tmp_path)).list_files()
    assert [path.name for path in files] == [
        "a.test.tsv",
        "b.test.tsv",
        "a.test.tsv",
        "SICK_test_annotated.txt",
        "dev.tsv",
    ]


def test_the_folder_of_sts_b_itself_is_accepted(predictor, tmp_path):
    write_glue(tmp_path / "dev.tsv", PAIRS)
    scores = SentenceSimilarity(str(tmp_path)).compute(predictor).scores
    assert scores == dict.fromkeys(("sts_b", "sts"), correlate(predictor, PAIRS))


def test_a_pair_without_a_score_is_left_out_and_quotes_are_text(predictor, tmp_path):
    quoted = [(1.5, f'"{SENTENCES[9]}', f'{SENTENCES[10]}""'), *PAIRS]
    rows = [("", "no", "pair"), *quoted, ("", SENTENCES[0], SENTENCES[1])]
    write_semeval(tmp_path / "2016" / "a.test.tsv", rows)
    measure = SentenceSimilarity(str(tmp_path))
    assert [(*pair,) for pair in measure.read_pairs()["sts_2016"]] == quoted
    assert measure.compute(predictor).scores["sts_2016"] == correlate(predictor, quoted)


def test_every_distinct_sentence_is_encoded_once(predictor, tmp_path, monkeypatch):
    embed, encoded = type(predictor).embed, []

    def record(self, sentences, *arguments):
        encoded.extend(sentences)
        return embed(self, sentences, *arguments)

    monkeypatch.setattr(type(predictor), "embed", record)
    write_semeval(tmp_path / "2012" / "a.test.tsv", PAIRS)
    write_glue(tmp_path / "dev.tsv", PAIRS)
    SentenceSimilarity(str(tmp_path)).compute(predictor)
    assert sorted(encoded) == sorted({text for _, *pair in PAIRS for text in pair})


def test_a_measurement_is_kept_in_the_folder_of_the_run(folder, predictor, tmp_path):
    measure = SentenceSimilarity(str(write_glue(tmp_path / "dev.tsv", PAIRS)))
    assert load_or_measure(folder, [measure])["sts"].scores == {"sts": correlate(predictor, PAIRS)}
    assert measure.find_problem(predictor.run) is None


def test_a_classifier_has_vectors_too(tmp_path):
    spec = RunSpec(name="classifier", model=BERT, objective=Classification(("a", "b")))
    write_random_run(tmp_path / "run", spec, load_tokenizer(task_examples.vocabulary(tmp_path)))
    path = write_glue(tmp_path / "dev.tsv", PAIRS)
    assert SentenceSimilarity().find_problem(encoders.load(tmp_path / "run").run) is None
    assert abs(SentenceSimilarity(str(path)).compute(encoders.load(tmp_path / "run")).scores["sts"]) <= 1


def test_a_folder_without_pairs_is_refused_with_what_is_accepted(tmp_path):
    write_semeval(tmp_path / "2012" / "a.train.tsv", PAIRS)
    accepted = ("2012", "2016", "*.test.tsv", "sick/SICK_test_annotated.txt", "STS-B/dev.tsv", "sentence1")
    with raises_naming(UserError, tmp_path, *accepted) as caught:
        SentenceSimilarity(str(tmp_path)).list_files()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, line, values",
    [
        ("2013/a.test.tsv", "1.0\ttan", ("2 fields", "sentence2")),
        ("2013/a.test.tsv", "high\ttan\tber", ("score='high'",)),
        ("2013/a.test.tsv", "nan\ttan\tber", ("score='nan'",)),
        ("2013/a.test.tsv", "1.0\t\tber", ("sentence1",)),
        ("dev.tsv", "1.0\ttan", ("2 fields",)),
    ],
)
def test_damaged_rows_are_named(name, line, values, predictor, tmp_path):
    write(tmp_path / name, ["score\tsentence1\tsentence2" if name == "dev.tsv" else "1\ttan\tber", line])
    with raises_naming(UserError, f"{tmp_path / name}:2", *values):
        SentenceSimilarity(str(tmp_path)).compute(predictor)


def test_a_file_without_the_columns_is_named(predictor, tmp_path):
    with raises_naming(UserError, "a.tsv:2", "score", "first, second"):
        SentenceSimilarity(str(write(tmp_path / "a.tsv", ["first\tsecond", "tan\tber"]))).compute(predictor)


def test_a_set_of_one_scored_pair_has_no_correlation(predictor, tmp_path):
    path = write_semeval(tmp_path / "2014" / "a.test.tsv", [PAIRS[0], ("", "tan", "ber")])
    with raises_naming(UserError, path, "1 pair", "sts_2014"):
        SentenceSimilarity(str(tmp_path)).compute(predictor)


def test_a_pooling_that_does_not_exist_is_refused():
    with raises_naming(UserError, "sts.pooling", "max", "mean", "cls"):
        SentenceSimilarity(pooling="max")
