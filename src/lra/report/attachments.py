"""What else a report page shows: pictures and tables that a study has written beside its runs."""

import base64
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from lra.report.comparison import MISSING

SUFFIXES = (".png", ".md", ".csv")
WRITERS = ("approximation/*", "bench_attention", "bench_step", "table3")
"""Folders below outputs/ where the scripts without runs write."""


@dataclass(frozen=True)
class Sheet:
    """A CSV."""

    name: str
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Attachment:
    """A folder, or a single file, and where its figures come from."""

    name: str
    provenance: str
    images: dict[str, str]
    """Data URLs by name."""
    texts: Sequence[Markup]
    sheets: Sequence[Sheet]


def written_folders(outputs: Path) -> list[Path]:
    """The folders below `outputs` where a study without runs has left tables or pictures."""
    folders = [path for pattern in WRITERS for path in sorted(outputs.glob(pattern))]
    return [path for path in folders if files_of(path)]


def attach(path: Path) -> Attachment:
    """A .png, .md or .csv, or all of them in a folder.

    Raises ValueError for anything else, OSError for what is not there.
    """
    files = files_of(path) if path.is_dir() else [path]
    if not files or any(file.suffix not in SUFFIXES for file in files):
        raise ValueError(f"{path} is no {', '.join(SUFFIXES)}, nor a folder with any")
    sheets = [read_sheet(file) for file in files if file.suffix == ".csv"]
    return Attachment(
        name=path.stem,
        provenance=f"{path}: {provenance(sheets)}",
        images={file.stem: data_url(file) for file in files if file.suffix == ".png"},
        texts=[render(file.read_text()) for file in files if file.suffix == ".md"],
        sheets=sheets,
    )


def files_of(folder: Path) -> list[Path]:
    """What of a folder can be shown, by name."""
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)


def read_sheet(path: Path) -> Sheet:
    """A CSV with a heading."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows:
        raise ValueError(f"{path} is empty")
    return Sheet(path.name, rows)


def provenance(sheets: Sequence[Sheet]) -> str:
    """The commits and devices that the lines of CSVs name."""
    named: dict[str, set[str]] = {"commit": set(), "device": set()}
    for sheet in sheets:
        heading, *lines = sheet.rows
        for column, key in enumerate(heading):
            kind = key.removeprefix("git_")
            if kind in named:
                named[kind] |= {line[column] for line in lines if line[column]}
    return ", ".join(f"{kind} {', '.join(sorted(v)) or MISSING}" for kind, v in named.items())


def data_url(picture: Path) -> str:
    """A PNG for a page that needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def render(markdown: str) -> Markup:
    """Markdown as HTML, its tables such that they can be sorted; HTML in it stays text."""
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    table = '<div class="scroll"><table class="sortable">'
    return Markup(html.replace("<table>", table).replace("</table>", "</table></div>"))
