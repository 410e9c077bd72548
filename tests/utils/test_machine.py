"""What a record says of the machine and of the code."""

import shutil
import subprocess
from pathlib import Path

import pytest

from encoders.utils import machine


@pytest.mark.live  # git need not be there
def test_the_commit_is_found_without_writing_the_index_of_the_repository(tmp_path, monkeypatch):
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)
    path = tmp_path / "machine.py"
    shutil.copy(machine.__file__, path)
    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    monkeypatch.setattr(machine, "__file__", str(path))
    commit, index = machine.find_commit(), tmp_path / ".git" / "index"
    path.touch()  # git would note the new time in the index
    before = index.read_bytes()
    assert len(commit) >= 7 and machine.find_commit() == commit and index.read_bytes() == before
    path.write_text("changed")
    assert machine.find_commit() == f"{commit}-dirty"
    assert not Path(f"{index}.lock").exists()
