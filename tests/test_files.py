import pytest

from encoders.files import owned


def test_an_error_in_an_owned_folder_is_that_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), owned(tmp_path / "a", pytest.fail):
        open(tmp_path / "nowhere")
    with owned(tmp_path / "a", pytest.fail):
        pass
