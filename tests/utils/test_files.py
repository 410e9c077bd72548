"""Whole files, and locks that are released with their processes."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from encoders.utils.errors import is_disk_full
from encoders.utils.files import check_local_paths, lock_dir, lock_owner

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


@pytest.mark.parametrize("path", ["gs://bucket/runs", "s3://bucket/runs"])
def test_a_path_in_an_object_store_is_refused(path):
    check_local_paths(None, "runs", "/runs", "C:/runs")
    with pytest.raises(ValueError, match=path):
        check_local_paths("runs", path)
