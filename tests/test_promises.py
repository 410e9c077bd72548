"""Every test that promises.md names is there."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (HERE / "promises.md").read_text(encoding="utf-8"))


def test_promises_name_tests():
    assert len(NAMED) > 60


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_the_tests_that_promises_name_are_there(path):
    tree = ast.parse((HERE.parent / path).read_text(encoding="utf-8"))
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not [name for file, name in NAMED if file == path and name not in there]
