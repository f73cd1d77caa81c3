"""One GPU to a job of a sweep. Imports no torch."""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

DRIVER = Path("/proc/driver/nvidia/gpus")
"""Where the driver lists the GPUs of a machine."""
WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Gpu:
    """A GPU that is this job's as long as `lock` is open, here or in a child process."""

    name: str
    """As CUDA_VISIBLE_DEVICES has it: a number or an identifier."""
    lock: IO[str]


def visible_gpus(setting: str | Sequence[str | int]) -> list[str]:
    """The names in `0,1` or [0, 1]; of `auto`, all GPUs of this machine."""
    if setting == "auto":
        num_gpus = len(list(DRIVER.iterdir())) if DRIVER.exists() else 0
        return [str(number) for number in range(num_gpus)]
    names = setting.split(",") if isinstance(setting, str) else [str(name) for name in setting]
    return [name.strip() for name in names if name.strip() and name.strip() != "-1"]


@contextmanager
def one_of(gpus: Sequence[str]) -> Iterator[Gpu | None]:
    """Own one of the GPUs, waiting until one is free; None if there are none to choose from.

    A GPU is taken by locking a file that all of a user's sweeps on this machine share.
    """
    if not gpus:
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f"lra-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        files = [
            (name, stack.enter_context((folder / name.replace("/", "_")).open("w")))
            for name in gpus
        ]
        name, file = _first_free(files)
        log.info("GPU %s", name)
        yield Gpu(name, file)


def _first_free(files: Sequence[tuple[str, IO[str]]]) -> tuple[str, IO[str]]:
    while True:
        for name, file in files:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return name, file
        time.sleep(WAIT_SECONDS)
