import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from encoders.training.metric_log import copy_damaged, reopen_rows, scan_metric_rows
from encoders.utils.buckets import check_local_paths, get_version, list_files, move_folder, open_text, parse_path
from encoders.utils.errors import is_of_bucket, is_refusal
from encoders.utils.files import hash_file, read_signed_json, write_signed_json
from tests.memory_bucket import install_memory_buckets
from tests.refusals import raises_naming


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    install_memory_buckets(monkeypatch, tmp_path)
    return parse_path("gs://bucket/runs")


@pytest.mark.parametrize(
    "name, values",
    [
        ("xx://bucket/a", ["xx://bucket/a", "gs://", "s3://"]),
        ("az://bucket/a", ["az://bucket/a", "adlfs"]),
        ("file:///a", ["file:///a", "gs://"]),
    ],
)
def test_a_scheme_that_is_unknown_or_not_installed_is_refused(name, values):
    with raises_naming(ValueError, *values):
        parse_path(name)


@pytest.mark.parametrize("path", ["gs://bucket/runs", "s3://bucket/runs"])
def test_a_path_in_a_bucket_is_refused_where_only_local_ones_are_taken(path):
    check_local_paths(None, "runs", "/runs", "C:/runs")
    with raises_naming(ValueError, path):
        check_local_paths("runs", path)


def test_a_local_path_is_that_of_pathlib(tmp_path):
    path = parse_path(tmp_path)
    assert type(path) is type(Path()) and path == tmp_path and parse_path("runs") == Path("runs")


def test_files_of_a_bucket_are_written_read_and_listed(bucket):
    write_signed_json(bucket / "a" / "record.json", {"steps": 7})
    (bucket / "text.txt").write_bytes(b"\xef\xbb\xbffirst\nsecond")
    assert read_signed_json(bucket / "a" / "record.json")["steps"] == 7
    with open_text(bucket / "text.txt") as file:
        assert file.read().split("\n") == ["first", "second"]
    sizes = {"a/record.json": len((bucket / "a/record.json").read_bytes()), "text.txt": 15}
    assert list_files(bucket) == sizes and list_files(bucket / "nowhere") == {}
    assert len(hash_file(bucket / "text.txt")) == 64


def test_a_file_that_is_written_again_has_another_version(bucket, tmp_path):
    for path in (bucket / "text.txt", tmp_path / "text.txt"):
        path.write_bytes(b"first")
        before = get_version(path)
        assert get_version(path) == before
        path.write_bytes(b"other")
        if "://" not in str(path):
            os.utime(path, ns=(0, 1))
        assert get_version(path) != before


def test_a_folder_of_a_bucket_moves_with_all_its_files(bucket):
    for name in ("3/a", "3/b/c", "30/a"):
        (bucket / name).write_bytes(name.encode())
    move_folder(bucket / "3", bucket / "damaged" / "3-x")
    assert list(list_files(bucket)) == ["30/a", "damaged/3-x/a", "damaged/3-x/b/c"]
    assert (bucket / "damaged/3-x/b/c").read_bytes() == b"3/b/c"
    with pytest.raises(FileNotFoundError):
        move_folder(bucket / "3", bucket / "damaged" / "3-y")


def test_rows_of_a_log_in_a_bucket_are_there_after_each_row(bucket):
    path, told = bucket / "metrics.jsonl", []
    rows = [{"step": step, "split": "train", "time": {"seconds": 1.0}} for step in (1, 2)]
    file = reopen_rows(path, rows, [], told.append)
    assert scan_metric_rows(path) == (rows, []) and not told
    file.close()
    path.write_bytes(path.read_bytes() + b"{bad\n")
    assert len(scan_metric_rows(path)[1]) == 1
    assert copy_damaged(path) and len(list_files(bucket / "damaged")) == 1


def test_buckets_are_read_by_fsspec_where_tensorflow_is_installed_too(tmp_path):
    (tmp_path / "tensorflow.py").write_text("")  # a TensorFlow that can do nothing
    code = (
        "import pytest\n"
        "from pathlib import Path\n"
        "from encoders.utils.buckets import open_text, parse_path\n"
        "from tests.memory_bucket import install_memory_buckets\n"
        "with pytest.MonkeyPatch.context() as patch:\n"
        f"    install_memory_buckets(patch, Path({str(tmp_path)!r}))\n"
        "    parse_path('gs://bucket/a.txt').write_bytes(b'one')\n"
        "    assert open_text(parse_path('gs://bucket/a.txt')).read() == 'one'\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    "error, is_passing, refuses",
    [
        (OSError(errno.EBUSY, "SlowDown"), True, False),
        (TimeoutError("RequestTimeout"), True, False),
        (ConnectionResetError("peer"), True, False),
        (ValueError("UNAVAILABLE: Error reading gs://bucket/403/x: HTTP response code: 503"), True, False),
        (ValueError("PERMISSION_DENIED: Error writing gs://bucket/x: HTTP response code: 403"), True, True),
        (PermissionError(errno.EACCES, "Access Denied"), False, True),
        (ValueError("a mistake in a program"), False, False),
    ],
)
def test_what_a_bucket_fails_with_is_told_from_what_it_refuses(error, is_passing, refuses):
    assert (is_of_bucket(error), is_refusal(error)) == (is_passing, refuses)
