"""The named experiments: files of `experiments/` in a checkout, and of this folder in an installed package.

A file imports another one as `from encoders.library.albert import experiments`.
"""

from pathlib import Path

INSTALLED_FOLDER = Path(__file__).parent
IS_INSTALLED = (INSTALLED_FOLDER / "quickstart.py").exists()
LIBRARY_FOLDER = INSTALLED_FOLDER if IS_INSTALLED else INSTALLED_FOLDER.parents[1] / "experiments"
__path__ = [str(LIBRARY_FOLDER)]
