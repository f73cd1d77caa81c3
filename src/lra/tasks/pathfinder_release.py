"""Pathfinder as the Long Range Arena released it: PNG images, and metadata that list them.

    …/pathfinder32/curv_contour_length_14/metadata/<batch>.npy
    …/pathfinder32/curv_contour_length_14/imgs/<batch>/sample_<i>.png

in a directory or a tar archive, at any depth. Metadata are plain text, in spite of their name, or
the array of strings that the original generator wrote. A row is an image: directory, file, index,
label, and the generator's parameters. Some image files of the release are empty.
"""

import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lra.tasks.sources import tfds_order

DIRECTORIES = {
    "easy": "curv_baseline",
    "intermediate": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}

_NUM_COLUMNS = 11
_NPY_MAGIC = b"\x93NUMPY"


class Row(NamedTuple):
    """An image that the metadata list."""

    path: str
    label: int


@dataclass(frozen=True)
class Release:
    """The images of one resolution and difficulty."""

    source: Path
    root: str
    """The directory of metadata and images."""
    rows: list[Row]
    """In the order of TensorFlow Datasets, by which the official splits go."""
    empty: frozenset[str]
    """Paths of listed images whose files have no content."""
    metadata_sha256: str


def find_release(source: Path, resolution: int, difficulty: str) -> Release:
    """Read the metadata; where there are two such directories, those of the deeper one.

    The release has a second pathfinder128 at the top, on which models stay at chance. Raises
    `FileNotFoundError` where there are no metadata, and `ValueError` for bad ones.
    """
    part = f"pathfinder{resolution}/{DIRECTORIES[difficulty]}"
    metadata: dict[str, dict[str, bytes]] = {}
    empty = set()
    wanted = re.compile(rf"(.*/)?{part}/(metadata/[^/]+\.npy|imgs/[^/]+/[^/]+\.png)")
    for file in _list_files(source, wanted):
        if file.size == 0:
            empty.add(file.path)
        elif file.path.endswith(".npy"):
            metadata.setdefault(file.path.rsplit("/", 2)[0], {})[file.path] = file.read()
    if not metadata:
        raise FileNotFoundError(f"{source} holds no {part}/metadata/*.npy")
    *others, root = sorted(metadata, key=lambda path: (path.count("/"), path))
    if others and others[-1].count("/") == root.count("/"):
        raise ValueError(f"{source} has {part} twice: {others[-1]} and {root}")
    rows: dict[str, Row] = {}
    digest = hashlib.sha256()
    for path, content in sorted(metadata[root].items()):
        digest.update(content)
        rows |= parse_metadata(content, path, root)
    ordered = [rows[key] for key in tfds_order(rows, difficulty)]
    listed_empty = empty.intersection(row.path for row in ordered)
    return Release(source, root, ordered, frozenset(listed_empty), digest.hexdigest())


def parse_metadata(content: bytes, path: str, root: str) -> dict[str, Row]:
    """The rows of a file of metadata by their key in TensorFlow Datasets, directory_file_line."""
    try:
        if content.startswith(_NPY_MAGIC):
            table = np.load(io.BytesIO(content), allow_pickle=False).astype(str).tolist()
        else:
            table = [line.split() for line in content.decode().splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is neither text nor an array of strings: {error}") from error
    rows = {}
    for number, row in enumerate(table, start=1):
        if len(row) != _NUM_COLUMNS:
            raise ValueError(f"{path}, row {number}: {len(row)} columns, not {_NUM_COLUMNS}")
        directory, name, _, label, *_ = row
        if label not in ("0", "1"):
            raise ValueError(f"{path}, row {number}: label {label!r} is not 0 or 1")
        rows[f"{directory}_{name}_{number}"] = Row(f"{root}/{directory}/{name}", int(label))
    return rows


def read_images(
    release: Release, rows: list[Row], images: UInt8[np.ndarray, "n r r"]
) -> Iterator[int]:
    """Read the images of `rows` into `images`, and yield 1 for each.

    Raises `ValueError` for one that is missing or is no gray image of that size.
    """
    position = {row.path: index for index, row in enumerate(rows)}
    wanted = re.compile(rf"{re.escape(release.root)}/imgs/[^/]+/[^/]+\.png")
    for file in _list_files(release.source, wanted):
        if (index := position.pop(file.path, None)) is not None:
            images[index] = decode(file.read(), file.path, len(images[index]))
            yield 1
    if position:
        first = min(position)
        raise ValueError(
            f"{release.source} lacks {len(position)} images that its metadata list, such as {first}"
        )


def decode(content: bytes, path: str, resolution: int) -> UInt8[np.ndarray, "r r"]:
    """The pixels of a PNG file."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is no image: {error}") from error
    if image.mode != "L" or pixels.shape != (resolution, resolution):
        found = f"{image.width} x {image.height}, mode {image.mode}"
        raise ValueError(f"{path} is {found}, not {resolution} x {resolution}, mode L")
    return pixels


class _File(NamedTuple):
    """A file of a directory, or a member of the archive at this point of the pass."""

    path: str
    size: int
    archive: tarfile.TarFile | None
    member: tarfile.TarInfo | None

    def read(self) -> bytes:
        """The content."""
        if self.archive is None or self.member is None:
            return Path(self.path).read_bytes()
        content = self.archive.extractfile(self.member)
        assert content is not None
        return content.read()


def _list_files(source: Path, wanted: re.Pattern[str]) -> Iterator[_File]:
    """The files whose whole path matches; those of an archive are to be read at once."""
    if not source.exists():
        raise FileNotFoundError(f"source={source} does not exist")
    if source.is_dir():
        for directory, _, names in os.walk(source.resolve()):
            for path in (f"{directory}/{name}" for name in names):
                if wanted.fullmatch(path):
                    yield _File(path, os.path.getsize(path), None, None)
        return
    try:
        with tarfile.open(source, "r|*") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps millions
                if member.isfile() and wanted.fullmatch(member.name):
                    yield _File(member.name, member.size, archive, member)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise ValueError(f"{source} is damaged, cut short, or no archive: {error}") from error
