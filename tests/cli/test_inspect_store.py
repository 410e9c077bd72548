from pathlib import Path

import numpy as np
import pytest

import launch
from encoders.cli.inspect_store import View, described
from encoders.data.beam_runner import Beam
from encoders.data.formats import ElectraPairs, SegmentPairs
from encoders.data.packing import Packed
from encoders.data.prepare import Data, prepared
from encoders.data.repair import damaged
from encoders.data.stream import Phase
from encoders.objectives.masked_lm import Joint
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.objectives.sentence_pair import SentenceOrder
from encoders.text.tokenization import Vocabulary
from tests.texts import write


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    home = tmp_path_factory.mktemp("inspect")
    text = write(home / "text.txt", documents=60)
    return Data((str(text),), Vocabulary(size=300), "lines", heldout=0.2, folder=str(home / "stores"))


@pytest.fixture(scope="module")
def store(data):
    return prepared(data)


SOP = View((Phase(9, 64, 8, Packed(SegmentPairs("swapped"))),), Joint(sentences=SentenceOrder()), seed=3)
RTD = View((Phase(9, 64, 8, ElectraPairs()), Phase(20, 32, 8, ElectraPairs())), ReplacedTokens(width=1 / 2))


def test_the_counts_are_those_of_the_store(store):
    text = "\n".join(described(store, View(), 0, False))
    for split in store.meta["splits"].values():
        assert f"{split['documents']:,}" in text and f"{split['tokens']:,}" in text
    assert "unknown tokens: 0.000%" in text and "wordpiece vocabulary of 300" in text


def test_rows_show_what_the_model_sees_and_what_it_has_to_say(store):
    lines = list(described(store, SOP, 3, False))
    rows = [line for line in lines if line.startswith("[CLS]")]
    assert len(rows) == 3
    for row in rows:
        (said,) = [lines[i + 1] for i, line in enumerate(lines) if line is row]
        words = row.split()
        assert f"{len(words)} tokens, {64 - len(words)} of padding" in said
        chosen = sum("←" in word or word.endswith("=") for word in words)
        assert f"{chosen} to be predicted" in said and chosen >= round(0.15 * len(words)) - 2
        assert said.count("; ") == row.count("[CLS]")  # a label for each example
        assert all(word.startswith("[MASK]←") or word.endswith("!") for word in words if "←" in word)


def test_every_phase_has_its_numbers(store):
    text = "\n".join(described(store, RTD, 1, False))
    assert "up to step 9: ElectraPairs" in text and "up to step 20: ElectraPairs" in text
    assert "rows of 64" in text and "rows of 32" in text


def test_colours_are_for_eyes_alone(store):
    coloured = "\n".join(described(store, SOP, 2, True))
    assert "\033[1;33m[MASK]←" in coloured and "\033[0m" in coloured
    assert "\033" not in "\n".join(described(store, SOP, 2, False))


def test_inspect_verifies_and_prepare_repairs(data, store, capsys, monkeypatch, tmp_path):
    (tmp_path / "tiny.py").write_text(
        "from encoders.data.filters import Filters\n"
        "from encoders.data.formats import FullSentences\n"
        "from encoders.data.prepare import Data\n"
        "from encoders.data.stream import Phase\n"
        "from encoders.experiment import Experiment\n"
        "from encoders.model.config import Model\n"
        "from encoders.objectives.masked_lm import Joint\n"
        "from encoders.text.tokenization import Vocabulary\n"
        "from encoders.training.optimizer import AdamW\n"
        "experiments = [Experiment(name='tiny', model=Model(vocab=300, hidden=8, layers=1, heads=1, intermediate=8,\n"
        "    positions=64, embedding=8), objective=Joint(), optimizer=AdamW(rate=1e-3, warmup=1),\n"
        f"    phases=(Phase(9, 32, 4, FullSentences()),), data={data!r})]\n"
    )
    assert launch.main(["inspect", str(store.path), str(tmp_path / "tiny.py"), "--verify", "--rows", "1"]) == 0
    said = capsys.readouterr()
    assert "1 parts, none damaged" in said.err and "rows of 32" in said.out
    tokens = np.memmap(store.path / "heldout" / "tokens.bin", np.uint16, "r+")
    tokens[5] ^= 1
    tokens.flush()
    assert launch.main(["inspect", str(store.path), "--verify"]) == 1
    assert "part 0 (" in capsys.readouterr().err
    command = ["prepare", str(tmp_path / "tiny.py"), "--repair", "--workers", "1"]
    assert launch.main(command) == 0 and "1 damaged part(s), made again" in capsys.readouterr().err
    assert launch.main(command) == 0 and "no damaged part(s)" in capsys.readouterr().err
    assert damaged(store) == []


@pytest.mark.parametrize(
    "options, message",
    [
        (["--workers", "0"], "--workers 0 must be at least 1"),
        (["--workers", "2", "--runner", "DirectRunner"], "--workers is for this machine"),
        (["--", "--region=x"], "--region=x: pipeline options go with --runner"),
    ],
)
def test_options_of_prepare_that_do_not_go_together_are_refused(options, message, capsys):
    assert launch.main(["prepare", "quickstart", *options]) == 1
    assert message in capsys.readouterr().err


def test_what_stands_behind_two_dashes_goes_to_beam(monkeypatch, capsys):
    from encoders.cli import commands

    seen = []
    monkeypatch.setattr(commands, "prepared", lambda data, say, runner: seen.append(runner) or 1 / 0)
    command = ["prepare", "quickstart", "--runner", "DirectRunner", "--only", "quickstart-bert"]
    for given in (command, ["prepare", *command[2:], "quickstart"]):
        with pytest.raises(ZeroDivisionError):
            launch.main([*given, "--", "--direct_num_workers=4", "--x"])
    assert seen == [Beam("DirectRunner", ("--direct_num_workers=4", "--x"))] * 2


def test_a_folder_that_is_no_store_is_refused(capsys, tmp_path):
    assert launch.main(["inspect", str(tmp_path)]) == 1
    assert "is not a prepared store" in capsys.readouterr().err
    assert Path(tmp_path).exists()
