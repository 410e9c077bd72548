from pathlib import Path

import numpy as np
import pytest

import launch
from encoders.cli.inspect_store import RowSettings, describe_store
from encoders.data.beam_runner import BeamRunner
from encoders.data.formats import ElectraPairs, SegmentPairs
from encoders.data.packing import PackedFormat
from encoders.data.prepare import find_damaged_units, prepare_store
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import SentenceOrderPrediction
from encoders.text.tokenization import TokenizerSpec
from tests.texts import write


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    home = tmp_path_factory.mktemp("inspect")
    text = write(home / "text.txt", documents=60)
    return PretrainingData(
        (str(text),), TokenizerSpec(vocab_size=300), "lines", heldout_fraction=0.2, store_dir=str(home / "stores")
    )


@pytest.fixture(scope="module")
def store(data):
    return prepare_store(data)


SOP = RowSettings(
    (Phase(9, 64, 8, PackedFormat(SegmentPairs("swapped"))),), MaskedLM(sentence_task=SentenceOrderPrediction()), seed=3
)
RTD = RowSettings(
    (Phase(9, 64, 8, ElectraPairs()), Phase(20, 32, 8, ElectraPairs())), ReplacedTokenDetection(generator_width=1 / 2)
)


def test_the_counts_are_those_of_the_store(store):
    text = "\n".join(describe_store(store, RowSettings(), 0, False))
    for split in store.metadata["splits"].values():
        assert f"{split['documents']:,}" in text and f"{split['tokens']:,}" in text
    assert "unknown tokens: 0.000%" in text and "wordpiece vocabulary of 300" in text


def test_rows_show_what_the_model_sees_and_what_it_has_to_say(store):
    lines = list(describe_store(store, SOP, 3, False))
    rows = [line for line in lines if line.startswith("[CLS]")]
    assert len(rows) == 3
    for row in rows:
        (said,) = [lines[i + 1] for i, line in enumerate(lines) if line is row]
        words = row.split()
        assert f"{len(words)} tokens, {64 - len(words)} of padding" in said
        chosen = sum("←" in word or word.endswith("=") for word in words)
        assert f"{chosen} to predict" in said and chosen >= round(0.15 * len(words)) - 2
        assert said.count("; ") == row.count("[CLS]")  # a label for each example
        assert all(word.startswith("[MASK]←") or word.endswith("!") for word in words if "←" in word)


def test_every_phase_has_its_numbers(store):
    text = "\n".join(describe_store(store, RTD, 1, False))
    assert "up to step 9: ElectraPairs" in text and "up to step 20: ElectraPairs" in text
    assert "rows of 64" in text and "rows of 32" in text


def test_colours_are_for_eyes_alone(store):
    coloured = "\n".join(describe_store(store, SOP, 2, True))
    assert "\033[1;33m[MASK]←" in coloured and "\033[0m" in coloured
    assert "\033" not in "\n".join(describe_store(store, SOP, 2, False))


def test_inspect_verifies_and_prepare_repairs(data, store, capsys, monkeypatch, tmp_path):
    (tmp_path / "tiny.py").write_text(
        "from encoders.data.filters import CorpusFilters\n"
        "from encoders.data.formats import FullSentences\n"
        "from encoders.data.spec import PretrainingData\n"
        "from encoders.data.stream import Phase\n"
        "from encoders.experiment import Experiment\n"
        "from encoders.model.config import EncoderConfig\n"
        "from encoders.objectives.masked_lm import MaskedLM\n"
        "from encoders.text.tokenization import TokenizerSpec\n"
        "from encoders.training.optimizer import AdamW\n"
        "experiments = [Experiment(name='tiny', model=EncoderConfig(vocab_size=300, hidden_size=8, num_layers=1,\n"
        "    num_heads=1, intermediate_size=8, max_positions=64, embedding_size=8), objective=MaskedLM(),\n"
        "    optimizer=AdamW(learning_rate=1e-3, warmup_steps=1),\n"
        f"    phases=(Phase(9, 32, 4, FullSentences()),), data={data!r})]\n"
    )
    assert launch.main(["inspect", str(store.path), str(tmp_path / "tiny.py"), "--verify", "--rows", "1"]) == 0
    said = capsys.readouterr()
    assert "1 units, 0 damaged" in said.err and "rows of 32" in said.out
    tokens = np.memmap(store.path / "heldout" / "tokens.bin", np.uint16, "r+")
    tokens[5] ^= 1
    tokens.flush()
    assert launch.main(["inspect", str(store.path), "--verify"]) == 1
    assert "unit 0 (" in capsys.readouterr().err
    command = ["prepare", str(tmp_path / "tiny.py"), "--repair", "--workers", "1"]
    assert launch.main(command) == 0 and "1 damaged unit(s) repaired" in capsys.readouterr().err
    assert launch.main(command) == 0 and "no damage" in capsys.readouterr().err
    assert find_damaged_units(store) == []


@pytest.mark.parametrize(
    "options, message",
    [
        (["--workers", "0"], "--workers 0 must be at least 1"),
        (["--workers", "2", "--runner", "DirectRunner"], "--workers 2 is for this machine"),
        (["--", "--region=x"], "--region=x: pipeline options need --runner"),
    ],
)
def test_options_of_prepare_that_do_not_go_together_are_refused(options, message, capsys):
    assert launch.main(["prepare", "quickstart", *options]) == 1
    assert message in capsys.readouterr().err


def test_what_stands_behind_two_dashes_goes_to_beam(monkeypatch, capsys):
    from encoders.cli import stores

    seen = []
    monkeypatch.setattr(stores, "prepare_store", lambda data, say, runner: seen.append(runner) or 1 / 0)
    command = ["prepare", "quickstart", "--runner", "DirectRunner", "--only", "quickstart-bert"]
    for given in (command, ["prepare", *command[2:], "quickstart"]):
        with pytest.raises(ZeroDivisionError):
            launch.main([*given, "--", "--direct_num_workers=4", "--x"])
    assert seen == [BeamRunner("DirectRunner", ("--direct_num_workers=4", "--x"))] * 2


def test_a_folder_that_is_no_store_is_refused(capsys, tmp_path):
    assert launch.main(["inspect", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert Path(tmp_path).exists()
