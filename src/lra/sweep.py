"""The runs of a sweep: what is left to do, how far it is, and what became of it.

Knows runs by their directories alone, so that it does not matter who launched them, or where.
"""

import logging
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from types import TracebackType

from lra.record import Config, RunDirectory, flatten, is_neutral

POLL_SECONDS = 2.0
"""Between two looks at the records."""


@dataclass(frozen=True)
class Job:
    """A run of a sweep, or a turn of one: the part up to some `trainer.pause_at_step`."""

    overrides: tuple[str, ...]
    directory: RunDirectory
    config: Config

    def is_finished(self) -> bool:
        """Whether its run is completed."""
        return status(self.directory) == "completed"

    def is_running(self) -> bool:
        """Whether a process runs in its directory."""
        return self.directory.owner() is not None


def status(directory: RunDirectory) -> str | None:
    """The status of the run in a directory, None if there is none."""
    return directory.read()["status"] if directory.record.exists() else None


def in_turns(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in their order, those of one directory one after the other.

    Raises `ValueError` if two jobs want the same directory and are not turns of one run.
    """
    runs: dict[str, list[Job]] = {}
    for job in jobs:
        turns = runs.setdefault(str(job.directory.path), [])
        if turns:
            _refuse_another_run(turns[-1], job)
        turns.append(job)
    return [[job for job in turn if job is not None] for turn in zip_longest(*runs.values())]


def _refuse_another_run(first: Job, second: Job) -> None:
    ours, theirs = dict(flatten(first.config)), dict(flatten(second.config))
    different = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    if not different:
        raise ValueError(f"two jobs of this sweep are the same run, {first.directory.path}")
    different = [key for key in different if not is_neutral(key)]
    if different:
        key = different[0]
        raise ValueError(
            f"two jobs of this sweep share {first.directory.path}: one has {key}={ours.get(key)}, "
            f"the other {key}={theirs.get(key)}; give each a directory of its own, "
            f"name='...${{{key}}}'"
        )


def in_parallel(
    act: Callable[[list[Job]], None], batches: Sequence[list[Job]], max_parallel: int
) -> None:
    """Call `act` on each batch, on so many at a time. Ctrl-C does not wait for the calls."""
    waiting: queue.SimpleQueue[list[Job]] = queue.SimpleQueue()
    for batch in batches:
        waiting.put(batch)
    workers = [
        threading.Thread(target=_work_off, args=(act, waiting), daemon=True)
        for _ in range(min(max_parallel, len(batches)))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _work_off(act: Callable[[list[Job]], None], waiting: "queue.SimpleQueue[list[Job]]") -> None:
    while True:
        try:
            batch = waiting.get_nowait()
        except queue.Empty:
            return
        act(batch)


def wait_for_running(jobs: Sequence[Job]) -> None:
    """Wait while any job runs, in whatever process."""
    while any(job.is_running() for job in jobs):
        time.sleep(POLL_SECONDS)


def why_unfinished(job: Job, error: str | None) -> str | None:
    """Why a job's run is not completed, None if it is. `error` is what its launcher heard of it."""
    now = status(job.directory)
    if now == "completed":
        return None
    if now == "failed":
        failure = job.directory.read()["failure"]
        return f"failed: {failure['type']}: {failure['message']}"
    if now == "paused":
        return "paused: the same command goes on"
    return f"{'never started' if now is None else 'stopped'}: {error or 'no reason given'}"


class Progress:
    """Context in which a line is said whenever a run of the sweep ends, with the time left."""

    def __init__(self, directories: Sequence[RunDirectory]) -> None:
        self._directories = directories
        self._log = line_log()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._before = {directory.path: changed_at(directory) for directory in self._directories}
        self._num_completed = self._num_failed = 0
        self._num_done_before = sum(status(d) == "completed" for d in self._directories)
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        changed = [d for d in self._directories if changed_at(d) != self._before[d.path]]
        ends = Counter(status(directory) for directory in changed)
        if (ends["completed"], ends["failed"]) == (self._num_completed, self._num_failed):
            return
        self._num_completed, self._num_failed = ends["completed"], ends["failed"]
        num_ended = self._num_completed + self._num_failed
        total, num_completed = len(self._directories), self._num_done_before + self._num_completed
        num_left = total - self._num_done_before - num_ended
        left = (time.monotonic() - self._start) / num_ended * num_left
        self._log.info(
            "%d of %d runs completed, %d failed, about %s left",
            num_completed, total, self._num_failed, duration(left),
        )  # fmt: skip


def changed_at(directory: RunDirectory) -> int | None:
    """When a directory's record was last written, None if there is none."""
    return directory.record.stat().st_mtime_ns if directory.record.exists() else None


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def line_log() -> logging.Logger:
    """A log of its own: Hydra turns the root log, and `lra`, into those of the job at hand."""
    log = logging.getLogger("sweep")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("[%(asctime)s][SWEEP] %(message)s"))
        log.addHandler(handler)
        log.propagate = False
        log.setLevel(logging.INFO)
    return log
