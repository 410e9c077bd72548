"""Predictions on the command line: lines of files, vectors in files, and what is refused."""

import json
import re
import sys

import numpy as np
import pytest

import launch
from encoders.cli import predict_lines, vector_files
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.tasks.classification import Classification
from encoders.tasks.encoder_only import EncoderOnly
from encoders.tasks.question_answering import SpanPrediction
from encoders.tasks.token_classification import TokenClassification
from encoders.text.tokenization import Tokenizer
from tests.inference.small_runs import ELECTRA
from tests.refusals import assert_names


def asked(capsys, *command) -> list[str]:
    assert launch.main(["predict", *map(str, command)]) == 0
    return capsys.readouterr().out.splitlines()


def test_predictions_for_lines_of_a_file_are_json_lines(features, home, capsys):
    path = home / "pairs.txt"
    path.write_text('tan here\ttan\n{"text": "what", "second": "who"}\n', encoding="utf-8")
    lines = [json.loads(line) for line in asked(capsys, features.run.folder, "similarity", "--file", path, "--json")]
    assert [line["text"] for line in lines] == [["tan here", "tan"], ["what", "who"]]
    expected = list(features.compare_pairs([("tan here", "tan"), ("what", "who")]))
    assert [line["similarity"] for line in lines] == pytest.approx(expected, abs=1e-4)


def test_texts_without_a_second_one_are_compared_with_each_other(features, capsys):
    lines = asked(capsys, features.run.folder, "similarity", "tan here", "what who")
    assert lines[0] == "tan here" and lines[1].split()[0] == "1.000"


GOOD, PAIR = b"tan here [MASK]", b"what\twho"


BLANK = [b"", b" \t ", "\u200b\u2060".encode()]
BAD_LINES = {
    "embed": [*BLANK, b"a\tb\tc", b"caf\xe9", b"{]", b'{"text": null}', "tan\t\u200b\u200d".encode()],
    "fill": [*BLANK, b"no mask", b"[MASK]\ttan"],
    "answer": [*BLANK, b"no context", "tan\t\ufeff\u200b".encode(), b"tan " * 70 + b"\ttan"],  # without room for it
    "similarity": [*BLANK, PAIR],
    **dict.fromkeys(("tokens", "classify", "replaced"), BLANK),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_and_the_others_are_answered(kind, run, home, capsys):
    heads = {
        "fill": ("masked", MaskedLM()),
        "classify": ("lines", Classification(("no", "yes"))),
        "answer": ("spans", SpanPrediction()),
        "replaced": ("pair", ReplacedTokenDetection(generator_width=1 / 2), ELECTRA),
    }
    folder = run(*heads.get(kind, ("features", EncoderOnly(has_pooler=True)))).run.folder
    path, good, bad = home / "lines.txt", PAIR if kind == "answer" else GOOD, BAD_LINES[kind]
    path.write_bytes(b"\n".join([good, *bad, good]) + b"\n")
    assert launch.main(["predict", str(folder), kind, "--file", str(path), "--json"]) == 1
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    named = re.findall(f"^{re.escape(str(path))}:([0-9]+): ", err, re.MULTILINE)
    assert len(answers) == 2 and named == [str(number) for number in range(2, len(bad) + 2)]
    assert f"{len(bad)} of {len(bad) + 2}" in err
    if kind != "similarity":
        assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", ["embed", "fill"])
def test_each_line_is_tokenised_once(kind, run, home, capsys, monkeypatch):
    folder, encoded = run("masked", MaskedLM()).run.folder, []
    path = home / "lines.txt"
    path.write_text("".join(f"[MASK] tan {number}\n" for number in range(9)))
    for name in ("encode", "encode_batch"):
        real = getattr(Tokenizer, name)
        monkeypatch.setattr(Tokenizer, name, lambda self, texts, real=real: encoded.append(texts) or real(self, texts))
    assert len(asked(capsys, folder, kind, "--file", path, "--json")) == len(encoded) == 9


def test_a_text_of_the_command_is_named_by_its_number_and_the_others_are_answered(features, capsys):
    assert launch.main(["predict", str(features.run.folder), "embed", "tan here", " ", "what who"]) == 1
    out, err = capsys.readouterr()
    assert "text 2: " in err and [line for line in out.splitlines() if line[0] != " "] == ["tan here", "what who"]


# Vectors in files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_vectors_are_written_with_a_row_for_each_line(suffix, features, home, capsys):
    source, out = home / "vectors.txt", home / f"vectors{suffix}"
    source.write_text("tan here\n\nwhat\twho\n", encoding="utf-8")
    command = ["predict", str(features.run.folder), "embed", "--file", str(source), "--pool", "cls"]
    assert launch.main([*command, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and f"{source}:2: " in said.err
    expected = list(features.embed(["tan here", ("what", "who")], "cls"))
    if suffix == ".parquet":
        from pyarrow import parquet

        columns = parquet.read_table(out).to_pydict()
        assert columns["text"] == ["tan here", None, "what"] and columns["second"] == [None, None, "who"]
        assert columns["vector"][1] is None
        found = [columns["vector"][0], columns["vector"][2]]
    else:
        rows = np.load(out) if suffix == ".npy" else np.load(out)["vectors"]
        assert rows.shape == (3, 16) and rows.dtype == np.float32 and np.isnan(rows[1]).all()
        found = rows[[0, 2]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_failure_leaves_the_vectors_that_were_there(features, home, monkeypatch):
    out = home / "kept.npy"
    np.save(out, np.arange(3))
    monkeypatch.setattr(vector_files, "encode_npy", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launch.main(["predict", str(features.run.folder), "embed", "tan", "--out", str(out)])
    assert np.load(out).tolist() == [0, 1, 2] and not list(home.glob(".kept.npy*"))


@pytest.mark.parametrize(
    "arguments, out, named",
    [
        (["embed"], "vectors.txt", ["vectors.txt", ".npy", ".npz", ".parquet"]),
        (["embed"], "missing/vectors.npy", ["missing"]),
        (["tokens"], "vectors.npy", ["tokens", "embed"]),
        (["embed", "--json"], "vectors.npy", ["--json", "vectors.npy"]),
        (["embed"], "vectors.parquet", ["vectors.parquet", "pip install pyarrow"]),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_run_is_read(
    arguments, out, named, home, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # as if it were not installed
    monkeypatch.setattr(predict_lines, "load_predictor", lambda *arguments: 1 / 0)
    assert launch.main(["predict", "no-run", *arguments, "--out", str(home / out)]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and all(word in error for word in named)


def test_tags_are_printed_and_are_json_lines(run, capsys):
    folder = run("tags", TokenClassification(("O", "B-PER", "B-LOC"))).run.folder
    (line,) = asked(capsys, folder, "tags", "tan sin", "--json")
    printed = asked(capsys, folder, "tags", "tan sin")
    for word, shown in zip(json.loads(line)["words"], printed[1:], strict=True):
        assert [word["word"], word["tag"]] == shown.split()[:2] and {"start", "end", "probability"} < word.keys()
    assert launch.main(["predict", str(folder), "tags", "tan", "--second", "sin"]) == 1
    assert "('tan', 'sin')" in capsys.readouterr().err


def test_a_wrong_number_of_second_texts_is_named(features, capsys):
    arguments = ["predict", str(features.run.folder), "similarity", "a tan", "b", "--second", "c", "d", "e"]
    assert launch.main(arguments) == 1
    assert_names(capsys.readouterr().err, "--second", "3 texts", " 2")
