"""One process to a run directory. Imports no torch."""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
"""How often an owner touches its lock."""
DEAD_AFTER_SECONDS = 75.0
"""Without a touch for so long, an owner on another machine is taken for dead."""
HANDOVER_SECONDS = 1.0
"""Those who only look at a lock hold it for an instant; whoever wants it waits so long."""


@dataclass(frozen=True)
class Owner:
    """The process that runs in a directory."""

    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class InUseError(OSError):
    """Another process runs in this directory."""


class Lock:
    """A file that its owner locks (`flock`), signs, and touches while it lives.

    On one machine the kernel's word decides: it frees the lock of a process however that died.
    Not all file systems pass `flock` on to other machines, so an owner there counts as alive while
    its signature is being touched. A lock left behind is taken over, after a wait of
    `DEAD_AFTER_SECONDS` if it is another machine's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._released = threading.Event()

    def owner(self) -> Owner | None:
        """Who runs here, at a glance."""
        owner = self._signature()
        if owner is None:
            return None
        try:
            with self.path.open("r+") as file:
                is_free = try_flock(file)
        except FileNotFoundError:  # released just now
            return None
        if is_free is False:
            return owner
        if is_free and owner.host == socket.gethostname():
            return None
        return owner if self._seconds_since_touched() < DEAD_AFTER_SECONDS else None

    def __enter__(self) -> "Lock":
        """Own the directory. Raises `InUseError` if somebody else does."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._take(file := self.path.open("a+")):  # its last owner has removed it
            file.close()
        self._file = file
        self._released.clear()
        self._toucher = threading.Thread(target=self._touch, args=(file.fileno(),), daemon=True)
        self._toucher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._released.set()
        self._toucher.join()
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _take(self, file: IO[str]) -> bool:
        until = time.monotonic() + HANDOVER_SECONDS
        while (is_free := try_flock(file)) is False:
            if time.monotonic() > until:
                raise InUseError(self._refusal(self._signature()))
            time.sleep(0.05)
        left_behind = self._signature()
        if left_behind is not None:
            if not (is_free and left_behind.host == socket.gethostname()):
                self._wait_for_a_touch(left_behind)
            log.warning("%s: taking over from %s, which is gone", self.path.parent, left_behind)
        if os.fstat(file.fileno()).st_nlink == 0:
            return False
        own = Owner(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"))
        file.truncate(0)
        file.write(json.dumps(asdict(own)))
        file.flush()
        return True

    def _wait_for_a_touch(self, owner: Owner) -> None:
        """Raise `InUseError` as soon as the owner gives a sign of life; compares no clocks."""
        seen = self.path.stat().st_mtime_ns
        log.warning(
            "%s belongs to %s; waiting up to %.0f s for a sign of life",
            self.path.parent, owner, DEAD_AFTER_SECONDS,
        )  # fmt: skip
        until = time.monotonic() + DEAD_AFTER_SECONDS
        while time.monotonic() < until:
            time.sleep(HEARTBEAT_SECONDS / 10)
            try:
                with self.path.open() as file:  # opened anew: a network file system looks again
                    touched = os.fstat(file.fileno()).st_mtime_ns
            except FileNotFoundError:  # released
                return
            if touched != seen:
                raise InUseError(self._refusal(owner))

    def _refusal(self, owner: Owner | None) -> str:
        return (
            f"{self.path.parent} is in use by {owner or 'another process'}; stop that one, or wait "
            f"for it: finished or killed, it gives the directory free"
        )

    def _signature(self) -> Owner | None:
        """What the file says: its owner, living or dead."""
        try:
            return Owner(**json.loads(self.path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # never owned, free, or half written
            return None

    def _seconds_since_touched(self) -> float:
        """By the clock of the file system, which may not be that of this machine."""
        with TemporaryFile(dir=self.path.parent) as probe:
            return os.fstat(probe.fileno()).st_mtime - self.path.stat().st_mtime

    def _touch(self, descriptor: int) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a network file system may be away for a while
                os.utime(descriptor)


def try_flock(file: IO[str]) -> bool | None:
    """Lock an open file: whether that was possible, None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
