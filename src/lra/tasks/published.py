"""Published archives: fetched, verified, and read member by member, packed or unpacked."""

import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lra.tasks.download import fetch
from lra.tasks.durable import build_lock, sha256


@dataclass(frozen=True)
class Archive:
    """A file as its authors publish it."""

    url: str
    num_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.name} ({self.num_bytes:,} bytes, sha256 {self.sha256})"


@dataclass(frozen=True)
class Publication:
    """Archives of the same data, the one to download first, and what is read from them.

    `members` matches names in full, such as `folder/file`, where `folder` is one of `folders`.
    """

    archives: tuple[Archive, ...]
    folders: tuple[str, ...]
    members: re.Pattern[str]


def fetch_archive(archive: Archive, directory: Path, progress: Callable[[int], object]) -> Path:
    """The archive in `directory`, downloaded and verified unless a file of its name is there.

    Raises `ConnectionError` that says what to place where, soon where there is no network, and
    `ValueError` where the server has another file.
    """
    path = directory / archive.name
    with build_lock(path):
        if path.is_file():
            return path
        try:
            fetch(archive.url, path, progress)
        except ConnectionError as error:
            raise ConnectionError(f"{error}; the file is {archive}") from error
        if (digest := sha256(path)) != archive.sha256:
            found = describe_file(path, digest)
            path.unlink()
            raise ValueError(f"{archive.url} gave {found}, not {archive}")
    return path


def contents(path: Path, publication: Publication) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member, from an archive or from where it was unpacked to.

    `path` is the archive, one of its folders, or what holds one. Raises `ValueError` for an archive
    that is damaged or cut off, and for a directory without the folders.
    """
    if path.is_file():
        yield from _packed(path, publication.members)
    else:
        for name, file in _unpacked(path, publication):
            yield name, file.read_bytes()


def directory_sha256(path: Path, publication: Publication) -> str:
    """SHA-256 of names and contents of the members below a directory, in the order of names."""
    digest = hashlib.sha256()
    for name, file in _unpacked(path, publication):
        digest.update(f"{name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def describe_file(path: Path, digest: str) -> str:
    """A file's size and SHA-256, for messages."""
    return f"{path.stat().st_size:,} bytes with sha256 {digest}"


def _packed(path: Path, members: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    file = archive.extractfile(member) if members.fullmatch(member.name) else None
                    if file is not None:
                        yield member.name, file.read()
            # tarfile takes a cut at the border of a member for the end; gzip's checksum does not
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged or cut off, or no .tar.gz: {error}") from error


def _unpacked(path: Path, publication: Publication) -> list[tuple[str, Path]]:
    base = path.resolve().parent if path.resolve().name in publication.folders else path
    folders = [base / folder for folder in publication.folders if (base / folder).is_dir()]
    if not folders:
        raise ValueError(f"source={path} holds no folder {' or '.join(publication.folders)}")
    named = [(file.relative_to(base).as_posix(), file) for file in sorted(folders[0].rglob("*"))]
    return [(name, file) for name, file in named if publication.members.fullmatch(name)]
