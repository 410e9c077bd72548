"""Whole files, and locks that are released with their processes."""

import ast
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import encoders
from encoders.utils.errors import is_disk_full
from encoders.utils.files import (
    NUMBER,
    DamagedFile,
    atomic_dir,
    check_shape,
    lock_dir,
    lock_owner,
    write_file_atomically,
)

HOLDER = """
import sys, time
from pathlib import Path
from encoders.utils.files import lock_dir
with lock_dir(Path(sys.argv[1]), lambda: None):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_an_error_in_a_locked_folder_is_raised_and_releases_the_lock(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), lock_dir(tmp_path / "a", pytest.fail):
        open(tmp_path / "nowhere")
    with lock_dir(tmp_path / "a", pytest.fail):
        pass


def test_a_lock_names_its_process_and_is_released_when_the_process_is_killed(tmp_path):
    assert lock_owner(tmp_path) is None
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    assert f"process {holder.pid} on {os.uname().nodename} since 20" in lock_owner(tmp_path)
    with (
        pytest.raises(RuntimeError, match="waits"),
        lock_dir(tmp_path, lambda: (_ for _ in ()).throw(RuntimeError("waits"))),
    ):
        pytest.fail("two processes hold one lock")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert lock_owner(tmp_path) is None
    with lock_dir(tmp_path, pytest.fail):
        assert f"process {os.getpid()} on " in lock_owner(tmp_path)


def test_a_lock_of_a_folder_that_its_holder_removes_passes_to_the_next_process(tmp_path):
    order, waits = [], threading.Event()

    def wait_for_lock():
        with lock_dir(tmp_path / "work", waits.set):
            order.append("second")
            assert (tmp_path / "work").exists()

    with lock_dir(tmp_path / "work", pytest.fail):
        second = threading.Thread(target=wait_for_lock)
        second.start()
        assert waits.wait(10)
        shutil.rmtree(tmp_path / "work")
        order.append("first")
    second.join(10)
    assert order == ["first", "second"]


def test_a_full_disk_is_recognised_by_the_text_of_its_error():
    assert is_disk_full(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert is_disk_full(ValueError(f"RESOURCE_EXHAUSTED: {os.strerror(errno.EDQUOT)} [source locations]"))
    assert not is_disk_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))


WRITER = """
import sys, time
from pathlib import Path
from encoders.utils.files import atomic_dir, claim_partial
import os
folder = Path(sys.argv[1])
open_file = lambda partial: os.open(partial, os.O_WRONLY | os.O_CREAT)
with atomic_dir(folder / "made") as made, claim_partial(folder / "file", open_file) as file:
    (made / "half").write_text("half")
    file.write_text("half")
    print("written", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_gone_after_the_next_write_and_a_living_one_is_not_disturbed(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "written\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.partial-0", ".made.partial-0"]
    with atomic_dir(tmp_path / "other") as other:
        (other / "a").write_text("a")
    with atomic_dir(tmp_path / "made") as made:
        assert made.name == ".made.partial-1" and not list(made.iterdir())
    write_file_atomically(tmp_path / "file", b"whole")
    assert (tmp_path / ".made.partial-0" / "half").exists() and (tmp_path / ".file.partial-0").exists()
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    shutil.rmtree(tmp_path / "made")
    with atomic_dir(tmp_path / "made"):
        pass
    write_file_atomically(tmp_path / "file", b"whole again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made", "other"]
    assert (tmp_path / "file").read_bytes() == b"whole again" and not list((tmp_path / "made").iterdir())


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), atomic_dir(tmp_path / "a" / "b") as folder:
        (folder / "half").write_text("half")
        raise KeyError
    with pytest.raises(FileNotFoundError):
        write_file_atomically(tmp_path / "nowhere" / "file", b"")
    with pytest.raises(IsADirectoryError):
        write_file_atomically(tmp_path, b"x")
    assert not list(tmp_path.iterdir()) and not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_a_folder_into_which_a_thread_still_writes_is_removed_after_a_failure(tmp_path, monkeypatch):
    removals, rmtree = [], shutil.rmtree

    def write_and_remove(path, **options):
        removals.append(path)
        if len(removals) == 3:
            rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", write_and_remove)
    with pytest.raises(KeyError), atomic_dir(tmp_path / "a"):
        raise KeyError
    assert len(removals) == 3 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value, place",
    [({}, "lacks a, b"), ({"a": 1, "b": {"x": "y"}}, "b, x"), ({"a": [1], "b": {}}, "a"), ([], ""), (None, "")],
)
def test_json_of_another_shape_is_named_by_its_place(value, place):
    check_shape({"a": 1, "b": {"x": 2.5}, "c": None}, {"a": int, "b": {str: NUMBER}}, "file.json")
    with pytest.raises(DamagedFile, match=f"file.json,? ?{place}"):
        check_shape(value, {"a": int, "b": {str: NUMBER}}, "file.json")


def test_every_error_of_the_package_is_of_one_kind_and_no_module_raises_a_plain_value_error():
    package, plain = Path(encoders.__file__).parent, []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                plain += [f"{path}:{node.lineno}"] * (node.exc.func.id == "ValueError")
    assert not plain
