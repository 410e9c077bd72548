import pytest

from encoders.utils.files import check_local_paths, lock_dir


def test_an_error_in_an_owned_folder_is_that_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), lock_dir(tmp_path / "a", pytest.fail):
        open(tmp_path / "nowhere")
    with lock_dir(tmp_path / "a", pytest.fail):
        pass


@pytest.mark.parametrize("place", ["gs://bucket/runs", "s3://bucket/runs"])
def test_a_place_that_is_no_folder_is_refused(place):
    check_local_paths(None, "runs", "/runs", "C:/runs")
    with pytest.raises(ValueError, match=f"{place} is no folder of this machine; .* mount the bucket or copy"):
        check_local_paths("runs", place)
