"""Embedded corpus: the docstrings of the packages that this one depends on."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from encoders.text.source import ByteRange, CorpusError, DigestCache, Document

EMBEDDED_PACKAGES = ("numpy", "scipy", "jax", "flax", "optax")  # in this order


class EmbeddedSource:
    """Source whose documents are modules; the paragraphs of a module's docstrings are those of its document."""

    def check_readable(self) -> None:
        for package in EMBEDDED_PACKAGES:
            find_package_dir(package)

    def describe_content(self, digest_cache: DigestCache) -> list[dict]:
        self.check_readable()
        return [{"embedded": {package: importlib.metadata.version(package) for package in EMBEDDED_PACKAGES}}]

    def split_ranges(self, target_bytes: int) -> Iterator[ByteRange]:
        yield ByteRange("embedded")

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        return map(list, chain.from_iterable(map(read_module_docstrings, EMBEDDED_PACKAGES)))


def find_package_dir(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # does not import the package
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(f"the embedded corpus needs {package}: pip install {package}")
    return Path(spec.submodule_search_locations[0])


@functools.cache  # 9 MB in all; parsing takes seconds, and a corpus is read more than once
def read_module_docstrings(package: str) -> tuple[tuple[str, ...], ...]:
    """Return the paragraphs of each module's docstrings, in the order of the modules' paths."""
    package_dir = find_package_dir(package)
    # numpy installs distutils for Python 3.11 only: without it the text is the same for every Python.
    skipped = {"tests", "_tests", "distutils"}
    names = sorted(path.relative_to(package_dir).as_posix() for path in package_dir.rglob("*.py"))
    names = [name for name in names if not skipped & set(name.split("/")) and not name.endswith("_test.py")]
    documents = (tuple(extract_paragraphs((package_dir / name).read_bytes())) for name in names)
    return tuple(document for document in documents if document)


def extract_paragraphs(source_code: bytes) -> Iterator[str]:
    """Yield the paragraphs of a module's docstrings, each on one line, without the rules under headings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes
        try:
            tree = ast.parse(source_code)
        except SyntaxError:  # a template
            return
    for text in iter_docstrings(tree):
        rows = [row for row in text.split("\n") if not re.fullmatch(r"[-=~^*#\s]{3,}", row)]
        for paragraph in re.split(r"\n\s*\n", "\n".join(rows)):
            if words := paragraph.split():
                yield " ".join(words)


def iter_docstrings(node: ast.AST) -> Iterator[str]:
    """Yield docstrings in source order, and the strings of numpy's and scipy's `add_newdoc("name", "text")` calls."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from iter_docstrings(child)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).split(".")[-1].startswith("add_newdoc"):
            constants = [node for node in ast.walk(child) if isinstance(node, ast.Constant)]
            for constant in sorted(constants, key=lambda node: (node.lineno, node.col_offset)):
                if isinstance(constant.value, str) and len(constant.value.split()) > 1:
                    yield inspect.cleandoc(constant.value)
