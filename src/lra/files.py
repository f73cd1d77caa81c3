"""Files that are whole or absent, and a clear word when the disk is full. Imports no torch."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class DiskFullError(OSError):
    """There is no room for a file of the run."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside `path` and rename it there: a reader never sees half of it.

    What stood at `path` stays until then. Raises `DiskFullError`.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with explained(path), temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the error of a full disk into one that says where, and how much is free."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save wraps the system's error in its own
        system = error if isinstance(error, OSError) else error.__context__
        if not isinstance(system, OSError) or system.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise DiskFullError(
            f"no room to write {path}: {system.strerror}, {free:,} bytes are free; make room, and "
            f"the same command goes on from the last save"
        ) from error
