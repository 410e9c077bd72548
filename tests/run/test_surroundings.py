"""The surroundings of a run: disks, optional packages, environment variables, paths, locale and clock."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from encoders.run import loop
from encoders.run.folder import RunError, read_result
from encoders.run.run import Run
from encoders.text.corpus import check_corpus
from encoders.text.source import CorpusError
from encoders.training.metric_log import Intervals, format_row, read_metric_rows
from encoders.utils.files import write_signed_json
from tests import texts
from tests.refusals import raises_naming
from tests.run.test_loop import assert_same_run, experiment, quiet, without_time
from tests.text.documents import read_corpus_documents

ROOT = Path(__file__).parents[2]
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef-wandb",
    "HF_TOKEN": "hf_AbCdEfGhIjKl",
    "HTTPS_PROXY": "http://somebody:pass-word@proxy.example:3128",
}
OPTIONAL = (
    "tensorflow", "tensorflow_datasets", "grain", "torch", "transformers", "sentencex", "backports", "pyarrow",
    "apache_beam", "sklearn", "matplotlib", "tensorboard", "tensorboard.summary", "importlib_resources",
)  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An experiment, and the folder of its run: without optional packages and a working directory, with secrets in
    its environment, a clock that is set back an hour whenever it is read, and names that are not ASCII."""
    home = tmp_path_factory.mktemp("où ça") / "数据 и тексты"
    gone = tmp_path_factory.mktemp("gone")
    home.mkdir()
    corpus = str(texts.write(home / "ein Text.txt", documents=60))
    made = experiment(
        corpus,
        "roberta",
        home,
        steps=6,
        intervals=Intervals(log_every=1, eval_every=3, save_every=2, keep_checkpoints=3, eval_batches=1),
    )
    made = replace(made, name="été", data=replace(made.data, sentence_splitting="lines"))
    hours, now = itertools.count(), time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now() - 3600 * next(hours))
        patch.chdir(gone)
        gone.rmdir()
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        for name in OPTIONAL:
            patch.setitem(sys.modules, name, None)
        with pytest.raises(FileNotFoundError):
            os.getcwd()
        loop.train(made, home / "run", quiet)
    return made, home / "run"


def test_a_run_needs_no_optional_package_and_no_working_directory(bare):
    assert read_result(bare[1])["steps"] == 6
    assert not (bare[1] / "tensorboard").exists()


def test_a_clock_that_is_set_back_changes_no_measured_time(bare):
    timings = [row["time"] for row in read_metric_rows(bare[1] / "metrics.jsonl")]
    assert len(timings) == 8
    assert all(0 <= timing["seconds"] < 600 for timing in timings)
    assert all(timing["tokens_per_second"] > 0 for timing in timings if "tokens_per_second" in timing)


def test_no_secret_of_the_environment_is_in_a_file_of_the_run_or_its_store(bare):
    files = [path for path in bare[1].parent.rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files)
    assert "été".encode() in written or b"\\u00e9t\\u00e9" in written  # what is looked through is what is written
    for secret in (*SECRETS.values(), "pass-word"):
        assert secret.encode() not in written


def test_names_that_are_not_ascii_read_back(bare):
    run = Run.open(bare[1])
    assert run.experiment == bare[0] and run.store.path.parent.parent == bare[1].parent


def test_a_moved_store_is_opened_by_its_new_path_and_another_store_is_refused(bare, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(Run.open(bare[1]).store.path, moved)
    assert (
        Run.open(bare[1], str(moved)).store.train_split.num_documents
        == Run.open(bare[1]).store.train_split.num_documents
    )
    with pytest.raises(RunError, match=f"{tmp_path};.*--store DIR"):
        Run.open(bare[1], str(tmp_path)).open_store()
    meta = json.loads((moved / "store.json").read_text())
    write_signed_json(moved / "store.json", meta | {"key": "0123456789abcdef"})
    with raises_naming(RunError, moved, "0123456789abcdef", meta["key"]):
        Run.open(bare[1], str(moved)).open_store()


@pytest.mark.parametrize("kept", [1, -2])  # bytes of the last row that have reached the disk
def test_a_torn_last_row_is_left_out_and_no_row_comes_twice(bare, tmp_path, kept):
    folder = tmp_path / "run"
    shutil.copytree(bare[1], folder)
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "6")
    path = folder / "metrics.jsonl"
    *whole, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole) + last[:kept])
    assert [format_row(number, row) for number, row in enumerate(read_metric_rows(path), 1)] == whole
    loop.train(bare[0], folder, quiet)
    logged = [(row["step"], row["split"]) for row in without_time(folder)]
    assert len(set(logged)) == len(logged) == 8
    assert_same_run(folder, bare[1])


@pytest.mark.parametrize(
    "package, name, sentences, remedy",
    [
        ("sentencex", "a.txt", "split", ["sentence_splitting='split'", "pip install sentencex"]),
        ("pyarrow.parquet", "a.parquet", "lines", ["Parquet", "pip install pyarrow"]),
        ("backports.zstd", "a.txt.zst", "lines", [".zst", "pip install backports.zstd"]),
        ("tensorflow_datasets", "tfds:x", "lines", ["tfds:x", "pip install tensorflow-datasets"]),
    ],
)
def test_an_error_for_a_missing_optional_package_says_how_to_install_it(
    package, name, sentences, remedy, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"A text.\n")
    monkeypatch.setitem(sys.modules, package, None)
    with raises_naming(CorpusError, package, *remedy):
        check_corpus((name,), sentences)
        list(read_corpus_documents((name,), sentences))


# Processes of their own

SMALL = [
    "model.num_layers=1",
    "model.hidden_size=16",
    "model.intermediate_size=24",
    "model.embedding_size=16",
    "model.num_heads=2",
]
SMALL += [
    "phases.*.until_step=2",
    "phases.0.until_step=1",
    "phases.*.batch_size=2",
    "phases.*.seq_length=16",
    "optimizer.warmup_steps=1",
    "data.heldout_fraction=0.2",
]
SMALL += [
    "model.vocab_size=320",
    "data.tokenizer.vocab_size=320",
    "data.sentence_splitting=lines",
    "intervals.log_every=1",
    "intervals.eval_batches=1",
]


def launched(folder: Path, settings=(), **environment) -> subprocess.CompletedProcess:
    """`launch.py train` of a tiny model in `folder`, whose paths are relative to it."""
    texts.write(folder / "a text.txt", documents=60)
    command = [sys.executable, str(ROOT / "launch.py"), "train", str(ROOT / "experiments" / "quickstart.py")]
    command += ["--only", "quickstart-roberta", "--runs", "my runs", "--set", *SMALL, *settings]
    command += ["data.corpus=a text.txt", "data.store_dir=my stores"]
    variables = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, encoding="utf-8", errors="replace"
    )


@pytest.fixture
def disk(tmp_path):
    """A disk of a megabyte where runs are kept."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.live
def test_a_disk_that_fills_up_is_named_and_costs_no_older_checkpoint(disk, tmp_path):
    settings = [
        "phases.*.until_step=9",
        "intervals.save_every=1",
        "intervals.keep_checkpoints=20",
        "intervals.eval_every=9",
    ]
    full = launched(tmp_path, settings)
    place = "my runs/quickstart-roberta"
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert full.stderr.splitlines()[-1].startswith(f"encoders: no space is left in {place};")
    run, lines = Run.open(tmp_path / place), []
    checkpoints = run.open_checkpoints()
    kept = checkpoints.all_steps()
    at, state, _ = run.restore_latest(checkpoints, lines.append)
    checkpoints.close()
    assert kept == list(range(1, len(kept) + 1)) and int(state.step) == at == kept[-1] < 9 and not lines
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    again = launched(tmp_path, settings)
    assert again.returncode == 0, again.stderr
    assert [row["step"] for row in read_metric_rows(tmp_path / place / "metrics.jsonl")] == [*range(1, 10), 9]


@pytest.fixture(scope="module")
def ascii_only(tmp_path_factory):
    """What became of a run in the C locale, with a compile cache that cannot be."""
    folder = tmp_path_factory.mktemp("a place")
    texts.write(folder / "cache", documents=1)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache" / "inside"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return launched(folder, **locale, **cache), folder


@pytest.mark.live
def test_relative_paths_with_spaces_are_enough_in_the_c_locale(ascii_only):
    done, folder = ascii_only
    assert done.returncode == 0, done.stderr
    assert read_result(folder / "my runs" / "quickstart-roberta")["steps"] == 2
    assert Run.open(folder / "my runs" / "quickstart-roberta").store.path.parent == folder / "my stores"


@pytest.mark.live
def test_a_compilation_cache_that_cannot_be_written_is_a_warning(ascii_only):
    done, folder = ascii_only
    assert done.returncode == 0 and "compilation cache" in done.stderr
    assert str(folder / "cache" / "inside") in done.stderr and "Traceback" not in done.stderr


@pytest.mark.live
@pytest.mark.parametrize(
    "variable, value, expected",
    [
        ("JAX_PLATFORMS", "cuda", "encoders: JAX_PLATFORMS=cuda"),
        ("JAX_PLATFORMS", "abacus", "encoders: JAX_PLATFORMS=abacus"),
        ("XLA_FLAGS", "--xla_no_such_flag=1", "XLA_FLAGS: --xla_no_such_flag=1"),
    ],
)
def test_an_environment_variable_with_a_wrong_value_is_named_in_one_line(variable, value, expected, tmp_path):
    if value == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU here")
    done = launched(tmp_path, **{variable: value})
    assert done.returncode != 0
    shown = [line for line in done.stderr.splitlines() if line.strip()]
    assert expected in shown[-1] and len(shown[-1]) < 400 and "Traceback" not in done.stderr
    assert not (tmp_path / "my runs").exists()


@pytest.mark.live
@pytest.mark.parametrize(
    "devices, setting, expected",
    [
        (1, "mesh.data=3", "mesh.data=3, mesh.fsdp=1, mesh.model=1 needs exactly 3 devices and there are 1; -1 takes"),
        (3, "mesh.data=3", "phases.batch_size=2 is not a multiple of 3: mesh.data x mesh.fsdp x grad_accum_steps"),
    ],
)
def test_devices_that_do_not_fit_the_mesh_or_the_batch_are_refused_in_one_line(devices, setting, expected, tmp_path):
    done = launched(tmp_path, [setting], XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
    assert done.returncode == 1 and not (tmp_path / "my runs").exists()
    assert done.stderr.splitlines()[-1].startswith(f"encoders: {expected}") and "Traceback" not in done.stderr
