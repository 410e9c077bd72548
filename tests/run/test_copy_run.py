from pathlib import Path

import numpy as np
import pytest

from encoders.experiment import RunSpec
from encoders.families import bert
from encoders.inference.predictor import load_predictor
from encoders.objectives.masked_lm import MaskedLM
from encoders.run import copy_run as copying
from encoders.run.copy_run import COMMITTED_FILE, copy_run
from encoders.run.folder import lock_run, open_run_folder, read_run_record
from encoders.text.tokenization import TokenizerSpec, train_tokenizer
from encoders.utils.buckets import list_files, parse_path
from tests.memory_bucket import install_memory_buckets
from tests.networks import write_random_run
from tests.refusals import raises_naming
from tests.texts import made_up

BUCKET_RUN = "gs://bucket/runs/masked"


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    tokenizer = train_tokenizer(TokenizerSpec(vocab_size=300), made_up(30))
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "max_positions": 32}
    model = bert.BASE.__class__(vocab_size=tokenizer.vocab.vocab_size, **sizes)
    folder = tmp_path_factory.mktemp("runs") / "masked"
    write_random_run(folder, RunSpec(name="masked", model=model, objective=MaskedLM()), tokenizer)
    return folder


@pytest.fixture(autouse=True)
def bucket(monkeypatch, tmp_path):
    install_memory_buckets(monkeypatch, tmp_path)


def test_a_run_that_went_through_a_bucket_gives_the_same_vectors(run, tmp_path):
    lines = []
    copy_run(str(run), BUCKET_RUN, lines.append)
    assert read_run_record(BUCKET_RUN) == read_run_record(run)
    marked = [name for name in list_files(parse_path(BUCKET_RUN)) if name.endswith(COMMITTED_FILE)]
    assert marked == [
        f"checkpoints/0/{COMMITTED_FILE}",
        *(f"checkpoints/0/{x}/{COMMITTED_FILE}" for x in ("notes", "params")),
    ]
    copy_run(BUCKET_RUN, str(tmp_path / "back"), lines.append)
    original = {name: size for name, size in list_files(run).items() if Path(name).name not in copying.NOT_COPIED}
    assert list_files(tmp_path / "back") == original and len(lines) == 2
    vectors = [[*load_predictor(folder, "latest").embed(["one two"])] for folder in (run, tmp_path / "back")]
    assert np.array_equal(*vectors) and np.size(vectors[0]) == 16


def test_a_copy_refuses_what_is_there_what_is_no_run_and_a_run_in_use(run, tmp_path):
    copy_run(str(run), BUCKET_RUN, quiet)
    for source, target, values in (
        (str(run), BUCKET_RUN, [BUCKET_RUN]),
        (str(run), str(run), [run]),
        ("gs://bucket/nowhere", str(tmp_path / "a"), ["gs://bucket/nowhere", "experiment.json"]),
    ):
        with raises_naming(ValueError, *values):
            copy_run(source, target, quiet)
    with lock_run(run, quiet), raises_naming(ValueError, run):
        copy_run(str(run), str(tmp_path / "a"), quiet)
    assert not (tmp_path / "a").exists()


def test_a_copy_that_was_interrupted_is_no_run_and_ends_with_the_same_call(run, monkeypatch):
    copy_file = copying.copy_file

    def break_off(source, target):
        if source.name == "tokenizer.json":
            raise ConnectionError("no network")
        copy_file(source, target)

    monkeypatch.setattr(copying, "copy_file", break_off)
    with pytest.raises(ConnectionError):
        copy_run(str(run), BUCKET_RUN, quiet)
    with raises_naming(ValueError, BUCKET_RUN):
        read_run_record(BUCKET_RUN)
    monkeypatch.setattr(copying, "copy_file", copy_file)
    copy_run(str(run), BUCKET_RUN, quiet)
    assert read_run_record(BUCKET_RUN) and copying.COPYING_FILE not in list_files(parse_path(BUCKET_RUN))


def test_a_copy_that_another_run_began_is_not_mixed_and_a_whole_one_not_written_again(run, tmp_path):
    folder = parse_path(BUCKET_RUN)
    (folder / copying.COPYING_FILE).write_bytes(b"/of/another")
    (folder / "checkpoints/900/params/manifest.ocdbt").write_bytes(b"of another")
    with raises_naming(ValueError, BUCKET_RUN):
        copy_run(str(run), BUCKET_RUN, quiet)
    (folder / copying.COPYING_FILE).write_bytes(str(run).encode())  # it began with a checkpoint that is gone
    copy_run(str(run), BUCKET_RUN, quiet)
    assert not [name for name in list_files(folder) if name.startswith("checkpoints/900")]
    (folder / copying.COPYING_FILE).write_bytes(str(run).encode())  # it was killed at the very end
    (folder / "saved_steps.json").write_bytes(b"trained since")
    copy_run(str(run), BUCKET_RUN, quiet)
    assert (folder / "saved_steps.json").read_bytes() == b"trained since"
    assert copying.COPYING_FILE not in list_files(folder)


def test_a_checkpoint_that_was_not_finished_is_left_out(run, tmp_path):
    copy_run(str(run), BUCKET_RUN, quiet)
    folder = parse_path(BUCKET_RUN)
    (folder / "checkpoints/7/params/manifest.ocdbt").write_bytes(b"half")
    copy_run(BUCKET_RUN, str(tmp_path / "back"), quiet)
    assert not (tmp_path / "back/checkpoints/7").exists() and (tmp_path / "back/checkpoints/0").exists()


@pytest.mark.parametrize("name", ["az://bucket/runs", "hf://datasets/runs"])
def test_a_bucket_in_which_nobody_can_hold_a_run_is_refused_for_runs(name):
    with raises_naming(ValueError, name, "gs://", "copy"):
        open_run_folder(name)
