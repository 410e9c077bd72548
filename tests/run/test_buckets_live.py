"""Runs, stores and texts in buckets of real servers on this machine, under the faults of a network and a cloud."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest

from encoders.run.preemption import STOPPED_STATUS
from tests import faulty_proxy as faults
from tests import texts
from tests.bucket_servers import BucketServer, run_gcs, run_s3
from tests.faulty_proxy import Rule

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[2]
SHORT_LEASE = 4  # seconds, where a test waits until it expires
STEPS = 12  # a checkpoint every third
EXPERIMENT_FILE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from urllib.parse import unquote
from tests.run.test_loop import experiment
experiments = [experiment({corpus!r}, "roberta", Path({folder!r}), steps={steps})]
"""
COMMAND = """
import sys
sys.path.insert(0, {root!r})
from encoders.utils import lease
lease.LEASE_SECONDS = {lease_seconds}
import launch
sys.exit(launch.main({words!r}))
"""
NAME = "tiny-roberta"
CHECKPOINT_UPLOAD = ("POST|PUT", r"/upload/.*checkpoints(%2F|/)9(%2F|/)(params|rest)")


@dataclass
class Place:
    """An experiment on this machine, a server of buckets, and the rows of a run that met no fault."""

    server: BucketServer
    folder: Path
    lease_seconds: int = 30
    cache: str = "cache"  # the folder of this machine's copies
    rules: list[Rule] = field(default_factory=list)

    @property
    def corpus(self) -> Path:
        return self.folder / "text.txt"

    def add_rule(self, act: Callable, request: tuple[str, str], limit: int | None = None) -> Rule:
        rule = self.server.proxy.add_rule(act, *request, limit)
        self.rules.append(rule)
        return rule

    def start(self, *words: str) -> subprocess.Popen:
        environment = {"XDG_CACHE_HOME": str(self.folder / self.cache), **self.server.environment}
        code = COMMAND.format(root=str(ROOT), lease_seconds=self.lease_seconds, words=list(words))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment}, **pipes)

    def start_training(self, runs: str) -> subprocess.Popen:
        file = str(self.folder / "tiny.py")
        return self.start("train", file, "--runs", runs, "--set", f"data.store_dir={self.server.root}/stores")

    def train(self, runs: str, status: int = 0) -> str:
        """Train the experiment, and return what the command wrote to its standard error."""
        return finish(self.start_training(runs), status)

    def read(self, runs: str, name: str) -> bytes | None:
        """Return a file of the run, or None; that of a bucket as the server itself has it."""
        path = Path(runs) / NAME / name
        if runs.startswith("gs://"):
            return self.server.read_object(f"{runs}/{NAME}/{name}")
        return path.read_bytes() if path.exists() else None

    def has(self, runs: str, name: str) -> bool:
        return self.read(runs, name) is not None

    def read_rows(self, runs: str) -> list[dict]:
        """Return the rows of a run's metrics without times."""
        rows = [json.loads(line) for line in self.read(runs, "metrics.jsonl").splitlines()]
        return [{name: value for name, value in row.items() if name not in ("time", "check")} for row in rows]

    def read_checksums(self, runs: str) -> dict:
        return json.loads(self.read(runs, f"checkpoints/{STEPS}/notes/metadata"))["checksums"]

    def assert_same_run(self, runs: str) -> None:
        whole = str(self.folder / "runs")
        assert self.read_rows(runs) == self.read_rows(whole)
        assert self.read_checksums(runs) == self.read_checksums(whole)
        if runs.startswith("gs://"):
            assert json.loads(self.read(runs, ".lease"))["owner"] is None


def finish(process: subprocess.Popen, *statuses: int) -> str:
    output, errors = process.communicate(timeout=200)
    assert process.returncode in statuses, errors
    assert "Traceback" not in errors, errors
    return errors


def wait_until(is_done: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    corpus = texts.write(folder / "text.txt", documents=60)
    made = EXPERIMENT_FILE.format(root=str(ROOT), corpus=str(corpus), folder=str(folder), steps=STEPS)
    (folder / "tiny.py").write_text(made)
    with run_gcs() as server:
        place = Place(server, folder)
        place.train(str(folder / "runs"))
        yield place


@pytest.fixture
def place(shared_place):
    yield shared_place
    for rule in shared_place.rules:
        shared_place.server.proxy.remove_rule(rule)
    shared_place.rules.clear()
    shared_place.lease_seconds = Place.lease_seconds


def test_a_run_in_a_bucket_is_that_on_a_disk_and_its_verbs_read_it(place):
    runs = "gs://bucket/plain"
    place.train(runs)
    place.assert_same_run(runs)
    for words in (
        ["evaluate", f"{runs}/{NAME}", "--batches", "1"],
        ["predict", f"{runs}/{NAME}", "embed", "one two"],
        ["status", str(place.folder / "tiny.py"), "--runs", runs],
        ["report", runs],
        ["copy", f"{runs}/{NAME}", str(place.folder / "copied" / NAME)],
        ["copy", str(place.folder / "runs" / NAME), f"gs://bucket/sent/{NAME}"],
        ["evaluate", str(place.folder / "copied" / NAME), "--batches", "1"],
        ["evaluate", f"gs://bucket/sent/{NAME}", "--batches", "1"],
    ):
        finish(place.start(*words), 0)
    assert len(place.server.read_object(f"{runs}/report.html")) > 10_000
    assert "already finished" in place.train("gs://bucket/sent")


ANY_REQUEST, UPLOAD = ("GET|POST|PUT|DELETE", "."), ("POST|PUT", "^/upload/")
LISTING = ("GET", r"^/storage/v1/b/[^/]+/o/?(\?|$)")


@pytest.mark.parametrize(
    "name, build_action, request_kind, num_faults",
    [
        ("503", lambda server: server.answer_error(503), ANY_REQUEST, 20),
        ("time-out", lambda server: faults.hold_connection(2.0), ANY_REQUEST, 6),
        ("half", lambda server: faults.forward_half, UPLOAD, 5),
        ("lost", lambda server: faults.lose_answer, UPLOAD, 10),
    ],
)
def test_a_fault_that_passes_changes_no_number(name, build_action, request_kind, num_faults, place):
    runs, num_acted = f"gs://bucket/{name}", 0
    act, seen = build_action(place.server), set()

    def act_once_per_path(request):
        nonlocal num_acted
        path = re.sub(r"tensorstore=\w+", "", request.path)  # TensorStore makes each of its requests another
        if path in seen or num_acted == num_faults:
            return None
        seen.add(path)
        num_acted += 1
        return act(request)

    place.add_rule(act_once_per_path, request_kind)
    place.train(runs)
    assert num_acted == num_faults
    place.assert_same_run(runs)


def test_a_run_killed_in_the_middle_of_a_save_ends_bit_identical(place):
    place.lease_seconds = SHORT_LEASE
    runs = "gs://bucket/killed"
    process = place.start_training(runs)
    rule = place.add_rule(lambda request: process.kill(), CHECKPOINT_UPLOAD, limit=1)
    finish(process, -signal.SIGKILL)
    assert rule.count == 1 and not place.has(runs, "checkpoints/9/commit_success.txt")
    errors = place.train(runs)
    assert "resumes from step 6" in errors and f"up to {SHORT_LEASE} s" in errors
    place.assert_same_run(runs)


def test_a_run_killed_while_an_old_checkpoint_is_removed_ends_bit_identical(place):
    place.lease_seconds, runs = SHORT_LEASE, "gs://bucket/removing"
    process = place.start_training(runs)
    left = []
    is_there = lambda name: place.server.read_object(f"{place.server.root}/{name}") is not None

    def kill_and_remove_nothing_more(request):
        if place.has(runs, "checkpoints/6/commit_success.txt"):  # deletions while it is written are others
            process.kill()
            name = unquote(request.path.partition("/o/")[2].partition("?")[0])
            left.extend([name] if is_there(name) else [])  # folders are asked for too, and are no objects
            raise faults.CloseConnection

    place.add_rule(kill_and_remove_nothing_more, ("DELETE", r"checkpoints(%2F|/)3(%2F|/)"))
    finish(process, -signal.SIGKILL)
    assert left and all(map(is_there, left))
    place.server.proxy.remove_rule(place.rules.pop())
    assert "resumes from step" in place.train(runs)
    place.assert_same_run(runs)


def test_a_stopped_run_saves_in_the_bucket_and_goes_on(place):
    runs = "gs://bucket/stopped"
    process = place.start_training(runs)
    wait_until(lambda: place.has(runs, "checkpoints/3/commit_success.txt"))
    process.send_signal(signal.SIGTERM)
    finish(process, STOPPED_STATUS)
    assert "resumes from step" in place.train(runs)
    place.assert_same_run(runs)


def test_a_full_quota_is_one_line_and_costs_no_checkpoint(place):
    runs = "gs://bucket/full"
    rule = place.add_rule(place.server.answer_error(403), CHECKPOINT_UPLOAD)
    errors = place.train(runs, status=1)
    assert rule.count and "gs://bucket/full" in errors.splitlines()[-1] and "quotaExceeded" in errors.splitlines()[-1]
    place.server.proxy.remove_rule(place.rules.pop())
    assert "resumes from step 6" in place.train(runs)
    place.assert_same_run(runs)


def test_a_stale_list_of_checkpoints_begins_no_run_anew(place):
    place.lease_seconds = SHORT_LEASE
    runs, lists, lists_at_six, old_lists = "gs://bucket/stale", {}, {}, {}

    def record_list(request):
        if request.path not in old_lists:
            lists[request.path] = request.forward()
        return old_lists.get(request.path) or lists[request.path]

    process = place.start_training(runs)
    place.add_rule(record_list, LISTING)
    place.add_rule(
        lambda request: lists_at_six.update(lists), (UPLOAD[0], r"checkpoints(%2F|/)6(%2F|/)params"), limit=1
    )
    place.add_rule(lambda request: process.kill(), CHECKPOINT_UPLOAD, limit=1)
    finish(process, -signal.SIGKILL)
    old_lists.update(lists_at_six)
    errors = finish(place.start_training(runs), 1, STOPPED_STATUS)
    assert "checkpoint 6 is missing" in errors
    old_lists.clear()
    assert "resumes from step 6" in place.train(runs)
    place.assert_same_run(runs)


def test_a_run_in_use_is_refused_and_a_paused_holder_loses_it(place):
    place.lease_seconds = SHORT_LEASE
    runs = "gs://bucket/leased"
    holder = place.start_training(runs)
    wait_until(lambda: place.has(runs, "checkpoints/3/commit_success.txt"))
    hold = place.add_rule(faults.hold_connection(1.0), ("POST", "checkpoints(%2F|/)"))
    assert f"process {holder.pid} on " in place.train(runs, status=1)
    holder.send_signal(signal.SIGSTOP)
    place.server.proxy.remove_rule(hold)
    place.rules.remove(hold)
    errors = place.train(runs)
    assert f"process {holder.pid} on " in errors and "resumes from step" in errors
    holder.send_signal(signal.SIGCONT)
    assert "lease" in finish(holder, STOPPED_STATUS)
    place.assert_same_run(runs)


def test_texts_and_stores_of_s3_are_those_of_this_machine(shared_place):
    with run_s3() as server:
        place = Place(server, shared_place.folder, cache="first machine")
        write = "from encoders.utils.buckets import parse_path; from pathlib import Path; import sys;"
        write += " parse_path('s3://bucket/texts/text.txt').write_bytes(Path(sys.argv[1]).read_bytes())"
        environment = {**os.environ, **server.environment}
        subprocess.run([sys.executable, "-c", write, str(place.corpus)], check=True, cwd=ROOT, env=environment)
        rule = place.add_rule(server.answer_error(503), ("GET|PUT|POST", "."), limit=4)
        words = ["prepare", str(place.folder / "tiny.py"), "--set", "data.corpus=s3://bucket/texts/*.txt"]
        finish(place.start(*words, "data.store_dir=s3://bucket/stores"), 0)
        place.cache = "other machine"
        read = place.start(
            "train", *words[1:], "data.store_dir=s3://bucket/stores", "--runs", str(place.folder / "runs s3")
        )
        assert "a copy of s3://bucket/stores" in finish(read, 0) and rule.count == 4
        assert place.read_rows(str(place.folder / "runs s3")) == place.read_rows(str(place.folder / "runs"))
        find_store = lambda machine: next(place.folder.glob(f"{machine} machine/encoders/stores/*/store.json"))
        assert find_store("other").read_bytes() == find_store("first").read_bytes()


def test_a_run_at_s3_that_is_killed_in_the_middle_of_a_save_ends_bit_identical(shared_place):
    with run_s3() as server:
        place, runs = Place(server, shared_place.folder, lease_seconds=SHORT_LEASE), "s3://bucket/runs"
        process = place.start_training(runs)
        rule = place.add_rule(lambda request: process.kill(), ("PUT", "/bucket/runs/.*checkpoints/9/"), limit=1)
        finish(process, -signal.SIGKILL)
        assert rule.count == 1
        errors = place.train(runs)
        assert "resumes from step 6" in errors and f"up to {SHORT_LEASE} s" in errors
        copied = str(place.folder / "from s3")
        finish(place.start("copy", f"{runs}/{NAME}", f"{copied}/{NAME}"), 0)
        place.assert_same_run(copied)
        finish(place.start("evaluate", f"{runs}/{NAME}", "--batches", "1"), 0)
