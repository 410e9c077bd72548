"""Processes that this machine starts end with the one that started them, however it ends."""

import signal
import subprocess
import sys

import pytest

CHILD = """
import sys, time
from encoders.sweeps.local_workers import end_with_parent
end_with_parent()
print("child", flush=True)
time.sleep(600)
"""
PARENT = f"""
import os, sys, time
from encoders.sweeps.local_workers import start_child
children = [start_child([sys.executable, "-c", {CHILD!r}], dict(os.environ)) for _ in range(2)]
time.sleep(600)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_parent(signal_number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert [parent.stdout.readline() for _ in range(2)] == ["child\n"] * 2
    parent.send_signal(signal_number)
    assert parent.communicate(timeout=60)[0] == ""  # the end of the pipe that the children hold as well
    assert parent.returncode == -signal_number
