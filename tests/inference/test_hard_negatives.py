"""Hard negatives: beside a plain loop over all texts, for every rule; what is never a negative, and what resumes."""

import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import launch
from encoders.cli import mine_pairs
from encoders.data.row_files import RowReader
from encoders.inference import hard_negatives
from encoders.inference.hard_negatives import NegativeRule, mine_negatives
from encoders.inference.sentence_embedding import normalize_vector
from encoders.tasks.text_groups import EmbeddingTask
from encoders.utils.errors import UserError
from tests import texts
from tests.refusals import assert_names, raises_naming

WORDS = texts.words()
ANCHORS = [f"{WORDS[i]} {WORDS[3 * i + 1]} what" for i in range(9)]
POSITIVES = [f"{WORDS[i + 20]} {WORDS[2 * i]} {WORDS[i]}" for i in range(13)]
# The first anchor has three positive texts, one of which is that of another anchor too.
PAIRS = [*zip(ANCHORS, POSITIVES, strict=False), (ANCHORS[0], POSITIVES[9]), (ANCHORS[0], POSITIVES[2])]
# Texts that are not in the pairs, one that occurs often, an anchor, and positive texts twice.
CORPUS = [*POSITIVES[9:], *[f"{POSITIVES[10]} "] * 40, ANCHORS[3], *POSITIVES[:9], *POSITIVES[:4], "tan here"]

ROOT = Path(__file__).parents[2]
MINE_IN_SMALL_BLOCKS = """
import sys
from functools import partial
from encoders.cli.parser import main
from encoders.inference import hard_negatives
hard_negatives.ROW_BLOCK_SIZE = 16
hard_negatives.build_index = partial(hard_negatives.build_index, block_size=16)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"anchor": a, "positive": p}) + "\n" for a, p in PAIRS), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{text}\n" for text in CORPUS), encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def cosines(features):
    """The cosine of any two texts of this file."""
    known = [*dict.fromkeys([*ANCHORS, *POSITIVES, "tan here"])]
    vectors = dict(zip(known, map(normalize_vector, features.embed(known)), strict=True))
    return {(a, b): float(vectors[a] @ vectors[b]) for a, b in product(known, known)}


def mine_by_loops(cosines, searched, rule):
    rows = []
    for anchor, positive in PAIRS:
        own = {anchor} | {p for a, p in PAIRS if a == anchor}
        others = sorted({*searched} - own, key=lambda text: -cosines[anchor, text])
        negatives = others[rule.ranks[0] - 1 : rule.ranks[1]]
        limit = cosines[anchor, positive]
        if rule.margin is not None:
            negatives = [text for text in negatives if cosines[anchor, text] <= limit - rule.margin]
        if rule.share is not None:
            negatives = [text for text in negatives if cosines[anchor, text] <= limit * rule.share]
        if negatives:
            rows.append({"anchor": anchor, "positive": positive, "negative": negatives[: rule.num_negatives]})
    return rows


RULES = [
    NegativeRule((1, 100), num_negatives=100),
    NegativeRule((2, 5)),
    NegativeRule((1, 9), margin=0.05, num_negatives=2),
    NegativeRule((3, 8), share=0.9, num_negatives=6),
    NegativeRule((1, 9), margin=0.02, share=0.97, num_negatives=3),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("has_corpus", [False, True])
def test_negatives_are_those_of_a_plain_loop(rule, has_corpus, features, cosines, pairs, corpus, tmp_path):
    out, logged = tmp_path / "out.jsonl", []
    mine_negatives(features, 0, pairs, out, rule, corpus if has_corpus else None, logged.append)
    searched = [text.strip() for text in CORPUS] if has_corpus else POSITIVES[:10]
    expected, rows = mine_by_loops(cosines, searched, rule), read_rows(out)
    assert rows == expected
    num_short = sum(len(row["negative"]) < rule.num_negatives for row in expected)
    assert_names(logged[-1], f"{len(expected)} of {len(PAIRS)} rows", f"{num_short} of them fewer", rule.num_negatives)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "out.jsonl", "pairs.jsonl"]


def test_texts_of_an_anchor_are_never_its_negatives(features, pairs, corpus, tmp_path):
    mine_negatives(features, 0, pairs, tmp_path / "out.jsonl", RULES[0], corpus)
    for row in read_rows(tmp_path / "out.jsonl"):
        own = {row["anchor"]} | {positive for anchor, positive in PAIRS if anchor == row["anchor"]}
        assert not own & set(row["negative"]) and len(set(row["negative"])) == len(row["negative"])
        assert len(row["negative"]) == len({text.strip() for text in CORPUS} - own)


def test_the_task_of_embeddings_reads_what_was_mined(features, pairs, tmp_path):
    mine_negatives(features, 0, pairs, tmp_path / "train.jsonl", NegativeRule((1, 4), num_negatives=4))
    task = EmbeddingTask(text_columns=("anchor", "positive", "negative"), num_texts=6)
    examples = task.read_examples(str(tmp_path), "train", RowReader())
    expected = [(row["anchor"], row["positive"], *row["negative"]) for row in read_rows(tmp_path / "train.jsonl")]
    assert [example.texts for example in examples] == expected and {len(texts) for texts in expected} == {6}


def test_spaces_around_a_text_make_no_other_text_and_are_kept(features, tmp_path):
    rows = [
        {"anchor": f" {ANCHORS[0]}", "positive": f"{POSITIVES[0]} "},
        {"anchor": ANCHORS[0], "positive": ANCHORS[1]},
    ]
    rows.append({"anchor": ANCHORS[2], "positive": f"\t{POSITIVES[3]}"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine_negatives(features, 0, tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", NegativeRule((1, 9)))
    mined = read_rows(tmp_path / "out.jsonl")
    assert [{name: row[name] for name in ("anchor", "positive")} for row in mined] == rows
    assert [sorted(row["negative"]) for row in mined] == [
        [POSITIVES[3]],
        [POSITIVES[3]],
        sorted([POSITIVES[0], ANCHORS[1]]),
    ]


def test_a_share_lowers_a_cosine_below_0_too():
    limits = NegativeRule(margin=0.02, share=0.9).compute_limits(np.array([0.5, 0.1, -0.5]))
    np.testing.assert_allclose(limits, [0.45, 0.08, -0.55])


def test_a_positive_may_be_a_list_whose_lowest_cosine_is_the_limit(features, cosines, tmp_path):
    rows = [{"anchor": ANCHORS[0], "positive": [POSITIVES[0], POSITIVES[5]], "more": 1}]
    rows += [{"anchor": anchor, "positive": positive} for anchor, positive in PAIRS[1:9]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logged, rule = [], NegativeRule((1, 100), margin=0.01, num_negatives=100)
    mine_negatives(features, 0, tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", rule, log=logged.append)
    mined = {row["anchor"]: row for row in read_rows(tmp_path / "out.jsonl")}
    limit = min(cosines[ANCHORS[0], POSITIVES[i]] for i in (0, 5)) - 0.01
    expected = {text for text in POSITIVES[:9] if cosines[ANCHORS[0], text] <= limit}
    row = mined.get(ANCHORS[0], {"positive": rows[0]["positive"], "negative": []})
    assert row["positive"] == rows[0]["positive"]
    assert set(row["negative"]) == expected - {POSITIVES[0], POSITIVES[5]}
    assert "more" in logged[0]


def test_a_killed_run_mines_only_what_it_lacks_and_ends_with_the_same_bytes(features, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(hard_negatives, "ROW_BLOCK_SIZE", 4)
    out, mine, mined = tmp_path / "out.jsonl", hard_negatives.mine_block, []
    mine_negatives(features, 0, pairs, tmp_path / "whole.jsonl", RULES[1])

    def mine_until_killed(predictor, rows, *arguments):
        if rows[0].anchor == ANCHORS[8]:
            raise KeyboardInterrupt
        return mine(predictor, rows, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(hard_negatives, "mine_block", mine_until_killed)
        with pytest.raises(KeyboardInterrupt):
            mine_negatives(features, 0, pairs, out, RULES[1])
    assert not out.exists() and (tmp_path / "out.jsonl.work").is_dir()
    with raises_naming(UserError, tmp_path / "out.jsonl.work" / "work.json", "rule"):
        mine_negatives(features, 0, pairs, out, RULES[2])
    monkeypatch.setattr(
        hard_negatives, "mine_block", lambda run, rows, *rest: mined.append(rows) or mine(run, rows, *rest)
    )
    mine_negatives(features, 0, pairs, out, RULES[1])
    assert [row.anchor for rows in mined for row in rows] == [ANCHORS[8], ANCHORS[0], ANCHORS[0]]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() != b""
    with raises_naming(UserError, out, "exists"):
        mine_negatives(features, 0, pairs, out, RULES[1])
    assert not (tmp_path / "out.jsonl.work").exists()


def test_the_verb_reads_a_table_and_prints_the_file(features, cosines, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mine_pairs, "load_predictor", lambda *arguments: features)
    (tmp_path / "pairs.tsv").write_text("anchor\tpositive\n" + "".join(f"{a}\t{p}\n" for a, p in PAIRS))
    command = ["mine", features.run.folder, tmp_path / "pairs.tsv", tmp_path / "out.jsonl", "--ranks", "1:9"]
    command += ["--margin", 0.02, "--share", 0.97, "--negatives", 3]
    assert launch.main([*map(str, command)]) == 0
    shown = capsys.readouterr()
    assert shown.out.split() == [str(tmp_path / "out.jsonl")] and "rows have negatives" in shown.err
    assert read_rows(tmp_path / "out.jsonl") == mine_by_loops(cosines, POSITIVES[:10], RULES[4])


@pytest.mark.parametrize(
    "words, named",
    [
        (["--ranks", "5"], ["--ranks 5", "10:100"]),
        (["--ranks", "9:3"], ["ranks=(9, 3)"]),
        (["--margin", "-1"], ["margin=-1.0"]),
        (["--share", "1.5"], ["share=1.5"]),
        (["--negatives", "0"], ["num_negatives=0", "at least 1"]),
        (["--step", "77"], ["--step 77", "best"]),
        (["--corpus", "missing.txt"], ["missing.txt"]),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_one_line(
    words, named, features, pairs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(mine_pairs, "load_predictor", lambda *arguments: features)
    assert launch.main(["mine", str(features.run.folder), str(pairs), str(tmp_path / "out.jsonl"), *words]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and [*tmp_path.iterdir()] == [pairs]
    assert_names(error, *named)


@pytest.mark.live
def test_processes_that_are_killed_anywhere_end_with_the_same_bytes(features, tmp_path):
    """A process is killed when each kind of file appears, and the command is repeated until it ends."""
    rows = [{"anchor": f"{a} what", "positive": f"{b} here"} for a, b in zip(WORDS[:90], WORDS[90:180], strict=True)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(name):
        command = [sys.executable, "-c", MINE_IN_SMALL_BLOCKS, "mine", features.run.folder, tmp_path / "pairs.jsonl"]
        return subprocess.Popen([*map(str, command), str(tmp_path / name), "--ranks", "1:20"], cwd=ROOT)

    assert start("whole.jsonl").wait() == 0
    for name in ("index/vectors-00003.npy", "rows-00001.jsonl"):
        process = start("out.jsonl")
        while not (tmp_path / "out.jsonl.work" / name).exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert not (tmp_path / "out.jsonl").exists() and start("out.jsonl").wait() == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(read_rows(tmp_path / "out.jsonl")) == 90
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "pairs.jsonl", "whole.jsonl"]


@pytest.mark.parametrize(
    "line, named",
    [
        ({"anchor": "tan"}, ("positive",)),
        ({"anchor": " ", "positive": "tan"}, ("anchor",)),
        ({"anchor": "tan", "positive": []}, ("positive",)),
        ({"anchor": "\u200b", "positive": "tan"}, ("empty",)),
        ({"anchor": "tan", "positive": "\u200b"}, ("empty",)),
    ],
)
def test_a_bad_row_is_named(line, named, features, pairs, tmp_path):
    with pairs.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    with raises_naming(UserError, f"{pairs}:{len(PAIRS) + 1}: ", *named):
        mine_negatives(features, 0, pairs, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
