"""Every verb under every fault that its user or machine can cause: one line, its status, nothing half-written.

`ENCODERS_INJECTIONS=1000 python -m pytest -m live -n 0 tests/cli/test_injections.py` prints what became of each kind.
"""

import errno
import io
import json
import os
import resource
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import pytest

from encoders.bench.measurements import MEASUREMENTS
from encoders.cli import commands
from encoders.cli.parser import BROKEN_PIPE_STATUS, main
from encoders.utils.files import write_signed_json
from tests import texts
from tests.file_events import watch_files

CODES = (errno.EACCES, errno.EMFILE, errno.ENOSPC, errno.EIO)
CONTENTS = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00{",
    "null": b"null",
    "a list": b"[]",
    "a number": b"3",
    "another object": b'{"class": {"type": 3}, "facts": [1], "files": 2}',
    "deep": b"[" * 100_000,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a text, a trained run, its store and its export."""
    built = tmp_path_factory.mktemp("built")
    texts.write(built / "text.txt", documents=30)
    (built / "lines.txt").write_text("a [MASK] .\n")
    (built / "pairs.jsonl").write_text('{"anchor": "a", "positive": "b"}\n{"anchor": "c", "positive": "d"}\n')
    (built / "mine.py").write_text(
        "import encoders\n"
        f"made = encoders.load_experiments('tiny', corpus={str(built / 'text.txt')!r})['tiny']\n"
        f"experiments = [encoders.apply_settings(made, ['data.store_dir={built}/stores'])]\n"
    )
    assert main(["train", f"{built}/mine.py", "--runs", f"{built}/runs"]) == 0
    assert main(["export", f"{built}/runs/tiny", f"{built}/published"]) == 0
    return built


def list_commands(home: Path) -> dict[str, list[str]]:
    """Return a command of each verb."""
    store = next(path for path in (home / "stores").iterdir() if path.name[0] != ".")
    run = f"{home}/runs/tiny"
    return {
        "show": ["show", f"{home}/mine.py"],
        "price": ["price", f"{home}/mine.py", "--on", "h200:8"],
        "prepare": ["prepare", f"{home}/mine.py", "--workers", "1", "--set", f"data.store_dir={home}/others"],
        "train": ["train", f"{home}/mine.py", "--runs", f"{home}/new"],
        "status": ["status", f"{home}/mine.py", "--runs", f"{home}/runs"],
        "table": ["table", "bert_t8", "--runs", f"{home}/runs"],
        "report": ["report", f"{home}/runs", "--out", f"{home}/page.html"],
        "inspect": ["inspect", str(store), f"{home}/mine.py"],
        "evaluate": ["evaluate", run],
        "measure": ["measure", run],
        "predict": ["predict", run, "fill", "--file", f"{home}/lines.txt"],
        "mine": ["mine", run, f"{home}/pairs.jsonl", f"{home}/mined.jsonl", "--ranks", "1:2"],
        "submit": ["submit", run, f"{home}/submission"],
        "export": ["export", run, f"{home}/exported"],
        "copy": ["copy", run, f"{home}/copied"],
        "import": ["import", f"{home}/published", f"{home}/imported"],
        "bench": ["bench", "step", f"{home}/mine.py", "--out", f"{home}/bench"],
    }


VERBS = list(commands.VERB_FUNCTIONS)
# They read and write as the others do.
SLOW_VERBS = {"evaluate", "predict", "measure", "mine", "submit", "export", "bench"}
VERBS_OF_EACH_KIND = [verb for verb in VERBS if verb not in SLOW_VERBS]
NUM_INJECTIONS = int(os.environ.get("ENCODERS_INJECTIONS", "12"))  # of the live tests, for each verb
OUTPUTS = (
    *("others", "new", "page.html", "submission", "exported", "copied", "imported", "bench", "runs/tiny/measures"),
    *("mined.jsonl", "mined.jsonl.work"),
)


@pytest.fixture
def home(built, tmp_path, monkeypatch):
    """A copy of that folder, in which files may be broken."""
    monkeypatch.setitem(MEASUREMENTS, "step", lambda experiments, options: iter([{"ms": 1.0}]))
    home = tmp_path / "home"
    shutil.copytree(built, home)
    (home / "mine.py").write_text((home / "mine.py").read_text().replace(str(built), str(home)))
    record = home / "runs" / "tiny" / "experiment.json"
    write_signed_json(record, json.loads(record.read_text().replace(str(built), str(home))))
    monkeypatch.chdir(tmp_path)
    return home


def assert_one_line(capsys, status: int, problem: object) -> None:
    """The command has ended with one line on what is wrong, without a traceback."""
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if line.startswith("encoders: ")]
    assert status == 1 and len(lines) == 1 and "Traceback" not in shown, (problem, status, shown)


def remove_outputs(home: Path, problem: object) -> None:
    partial_files = [path for path in home.rglob("*.partial*") if ".work/" not in str(path)]  # a work folder stays
    assert not partial_files, (problem, partial_files)
    for name in OUTPUTS:
        path = home / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def print_outcomes(capsys, verb: str, outcomes: Counter) -> None:
    with capsys.disabled():
        print(f"\n{verb}: {dict(sorted(outcomes.items()))}")


def run_with_failing_call(home: Path, words: list[str], fails_at: int, code: int) -> tuple[int, int]:
    """Run a command in which the n-th call that touches a file of `home` fails; return status and number of calls."""
    count = 0

    def fail(event: str, path: Path) -> None:
        nonlocal count
        if home in path.parents and "tensorboard" not in path.parts and sys.exc_info()[0] is None:
            count += 1
            if count == fails_at:
                raise OSError(code, os.strerror(code), str(path))

    with watch_files(fail):
        return main(words), count


def check_failing_calls(home: Path, verb: str, capsys, choose_calls) -> Counter:
    """Let chosen calls of a verb fail, and return what became of each kind of failure."""
    words = list_commands(home)[verb]
    status, num_calls = run_with_failing_call(home, words, 0, 0)
    assert status == (verb == "submit"), capsys.readouterr().err  # which needs a run of a task
    remove_outputs(home, verb)
    capsys.readouterr()
    assert num_calls, verb
    outcomes = Counter()
    for fails_at in choose_calls(num_calls):
        code = CODES[fails_at % len(CODES)]
        status, _ = run_with_failing_call(home, words, fails_at, code)
        if status:  # else it could do without the file
            assert_one_line(capsys, status, (verb, fails_at, os.strerror(code)))
        outcomes[f"{os.strerror(code)}: {'one line' if status else 'done without it'}"] += 1
        remove_outputs(home, (verb, fails_at))
    return outcomes


@pytest.mark.parametrize("verb", VERBS_OF_EACH_KIND)
def test_a_file_that_cannot_be_opened_made_or_renamed_costs_one_line(home, verb, capsys):
    check_failing_calls(home, verb, capsys, lambda count: sorted({1, count // 2 + 1, count}))


@pytest.mark.live
@pytest.mark.parametrize("verb", VERBS)
def test_any_file_that_cannot_be_opened_made_or_renamed_costs_one_line(home, verb, capsys):
    choose_calls = lambda count: range(1, count + 1, max(1, count // NUM_INJECTIONS))
    print_outcomes(capsys, verb, check_failing_calls(home, verb, capsys, choose_calls))


def list_read_files(home: Path, words: list[str]) -> list[Path]:
    """Return the JSON and text files of `home` that a command opens."""
    read: set[Path] = set()
    with watch_files(lambda event, path: read.add(path) if event == "open" else None):
        main(words)
    suffixes = (".json", ".jsonl", ".txt", "")  # Orbax's metadata have none
    return sorted(path for path in read if home in path.parents and path.suffix in suffixes and path.is_file())


def check_contents(home: Path, verb: str, capsys, names) -> Counter:
    """Fill each file that a verb reads with something else, and return what became of each kind of content."""
    words = list_commands(home)[verb]
    outputs = {home / name for name in OUTPUTS}
    files = [path for path in list_read_files(home, words) if not outputs & {path, *path.parents}]
    remove_outputs(home, verb)
    capsys.readouterr()
    outcomes = Counter()
    for number, path in enumerate(files):
        before = path.read_bytes()
        for name in names(number):
            path.write_bytes(CONTENTS[name])
            status = main(words)
            if status and path.name == "lines.txt":  # each bad text is named by its line
                assert f"{path}:1: " in capsys.readouterr().err
            elif status:
                assert_one_line(capsys, status, (verb, path, name))
            outcomes[f"{name}: {'one line' if status else 'done without it'}"] += 1
            remove_outputs(home, (verb, path, name))
            path.write_bytes(before)
    return outcomes


@pytest.mark.parametrize("verb", VERBS_OF_EACH_KIND)
def test_a_file_that_holds_something_else_costs_one_line(home, verb, capsys):
    names = list(CONTENTS)
    check_contents(home, verb, capsys, lambda number: [names[number % len(names)]])


@pytest.mark.live
@pytest.mark.parametrize("verb", VERBS)
def test_any_file_that_holds_anything_else_costs_one_line(home, verb, capsys):
    names = list(CONTENTS)
    choose_names = lambda number: {names[(number + i) % len(names)] for i in range(1, NUM_INJECTIONS // 4)}
    print_outcomes(capsys, verb, check_contents(home, verb, capsys, choose_names))


@pytest.mark.parametrize("num_bytes", [pytest.param(0, marks=pytest.mark.live), 3000])
@pytest.mark.parametrize("verb", ["prepare", "train", "report", "export", "import", "bench"])
def test_a_disk_that_is_full_or_fills_up_costs_one_line(home, verb, num_bytes, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        status = main(list_commands(home)[verb])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if status or verb != "bench":  # whose result is smaller
        assert_one_line(capsys, status, verb)
    remove_outputs(home, verb)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "{home}/mine.py", "--runs", "{home}/text.txt"],
        ["train", "{home}/mine.py", "--set", "data.store_dir={home}/text.txt/stores", "--runs", "{home}/new"],
        ["prepare", "{home}/mine.py", "--set", "data.store_dir={home}/text.txt"],
        ["status", "{home}/mine.py", "--runs", "{home}/text.txt"],
        ["report", "{home}/text.txt"],
        ["report", "{home}/nothing"],
        ["report", "{home}/runs", "--out", "{home}/text.txt/page.html"],
        ["evaluate", "{home}/text.txt"],
        ["evaluate", "{home}/runs/tiny", "--store", "{home}/text.txt"],
        ["evaluate", "{home}/runs/tiny", "--corpus", "{home}/nothing.txt"],
        ["predict", "{home}/runs/tiny", "fill", "--file", "{home}/nothing.txt"],
        ["predict", "{home}/runs/tiny", "fill", "--file", "{home}/runs"],
        ["predict", "{home}/runs/tiny", "fill", "--file", "~nobody-of-this-name/x"],
        ["import", "{home}/text.txt", "{home}/imported"],
        ["import", "{home}/published", "{home}/text.txt/run"],
        ["import", "~nobody-of-this-name/published", "{home}/imported"],
        ["export", "{home}/runs/tiny", "{home}/text.txt/exported"],
        ["inspect", "{home}/text.txt"],
        ["bench", "step", "{home}/mine.py", "--out", "{home}/text.txt"],
    ],
    ids=lambda words: " ".join(words).replace("{home}/", ""),
)
def test_a_file_in_the_place_of_a_folder_or_nothing_at_all_costs_one_line(home, words, capsys):
    status = main([word.format(home=home) for word in words])
    if words[0] == "status" and not status:  # nothing is trained there
        return
    assert_one_line(capsys, status, words)
    remove_outputs(home, words)


class ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "submit"])
def test_a_reader_that_has_enough_ends_a_command_without_a_word(home, verb, capsys, monkeypatch):
    words = list_commands(home)[verb]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", ClosedPipe())
        status = main(words)
    shown = capsys.readouterr().err
    assert status == BROKEN_PIPE_STATUS and "encoders: " not in shown and "Traceback" not in shown


def raise_error(error: BaseException, **arguments):
    raise error


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("error", [KeyError("a mistake"), ValueError("of numpy"), TypeError("another")], ids=repr)
def test_a_mistake_in_the_program_shows_its_traceback(verb, error, home, monkeypatch):
    monkeypatch.setitem(commands.VERB_FUNCTIONS, verb, partial(raise_error, error))
    with pytest.raises(type(error)):
        main(list_commands(home)[verb])


def test_without_a_home_a_warning_says_that_compiled_steps_are_not_kept(monkeypatch, capsys):
    def raise_no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", raise_no_home)
    cache_dir = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        commands.enable_compilation_cache()
    finally:
        jax.config.update("jax_compilation_cache_dir", cache_dir)
    assert "JAX_COMPILATION_CACHE_DIR" in capsys.readouterr().err
