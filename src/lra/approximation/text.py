"""Real text for the encoders: a file, or the prose that comes with every Python."""

import ast
import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

NO_PROSE = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings", "site-packages"}
"""Folders of the standard library that are tests, tables, or not part of it."""


@dataclass(frozen=True)
class Text:
    """A text and where it is from."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """Checksum of the content in UTF-8."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def load_text(path: str | None) -> Text:
    """The text of a file, or, for None, of Python's own documentation.

    Raises FileNotFoundError if there is no such file.
    """
    if path is None:
        version = platform.python_version()
        name = f"help topics and docstrings of the standard library of Python {version}"
        return Text(name, "\n\n".join(standard_library_prose()))
    if not Path(path).is_file():
        raise FileNotFoundError(f"text={path} does not exist")
    return Text(Path(path).name, Path(path).read_text(encoding="utf-8"))


def standard_library_prose() -> Iterator[str]:
    """The topics of `help()`, chapters of the language reference; then docstrings by file name."""
    for _, topic in sorted(topics.topics.items()):
        yield topic
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not NO_PROSE.intersection(path.relative_to(library).parts):
            yield from docstrings(path)


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module, its classes and functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
