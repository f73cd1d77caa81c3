"""Running what is missing of a study: each run in its own process, until done or out of time."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue

from lra.paths import REPOSITORY
from lra.study.plan import UNFINISHED, Job, state_of

MIN_SECONDS = 30.0
"""A run is not begun with less time than this: loading alone takes seconds."""

HYDRA_LINES = ("Error executing job", "Set the environment variable", "full_key")

Slot = Mapping[str, str]
"""Environment variables of a process that runs one job after the other."""


def slots(num_jobs: int | None, num_gpus: int, num_cores: int) -> Sequence[Slot]:
    """Places for `num_jobs` runs at once (None: one a GPU, or one), GPUs and cores shared out.

    Raises `ValueError` for less than one job.
    """
    count = max(num_gpus, 1) if num_jobs is None else num_jobs
    if count < 1:
        raise ValueError(f"jobs={count} is not positive")
    places: list[dict[str, str]] = [
        {"OMP_NUM_THREADS": str(max(num_cores // count, 1))} for _ in range(count)
    ]
    if num_gpus > 1:
        for number, place in enumerate(places):
            place["CUDA_VISIBLE_DEVICES"] = str(number % num_gpus)
    return places


def jobs_to_run(jobs: Iterable[Job], *, retry_failed: bool) -> list[Job]:
    """The runs that are not finished, nor under way elsewhere; failed ones if asked for."""
    wanted = {*UNFINISHED, *(("failed",) if retry_failed else ())}
    return [job for job in jobs if state_of(job)[0] in wanted]


@dataclass(frozen=True)
class Ending:
    """How the process of a run ended."""

    job: Job
    seconds: float
    returncode: int
    complaint: str
    """What it wrote to stderr."""


@dataclass
class Runner:
    """Runs jobs in their order, as many at once as there are slots.

    After `deadline` (of `time.monotonic()`) nothing is begun; what runs then saves and stops by
    itself. `tell` is called, from any thread, when a run ends.
    """

    slots: Sequence[Slot]
    deadline: float | None
    tell: Callable[[Ending], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    _processes: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def run(self, jobs: Iterable[Job]) -> None:
        """Run them all, or as many as there is time for. Ctrl-C and SIGTERM let each run save."""
        free: SimpleQueue[Slot] = SimpleQueue()
        for slot in self.slots:
            free.put(slot)
        with self._stopping_on_signals(), ThreadPoolExecutor(len(self.slots)) as pool:
            for ended in [pool.submit(self._run_in_slot, job, free) for job in jobs]:
                ended.result()

    def _run_in_slot(self, job: Job, free: "SimpleQueue[Slot]") -> None:
        budget: list[str] = []
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left < MIN_SECONDS:
                return
            budget = [f"trainer.time_budget_minutes={left / 60:.3f}"]
        if self.stopped.is_set():
            return
        slot = free.get()
        try:
            self.tell(self._run_one(job, budget, slot))
        finally:
            free.put(slot)

    def _run_one(self, job: Job, budget: list[str], slot: Slot) -> Ending:
        command = [sys.executable, str(REPOSITORY / "scripts/train.py"), *job.overrides, *budget]
        start = time.monotonic()
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command,
                env={**os.environ, **slot},
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # signals come from us alone
            )
            self._processes.add(process)
            returncode = process.wait()
            self._processes.discard(process)
            errors.seek(0)
            complaint = " ".join(
                line.strip() for line in errors if not line.startswith(HYDRA_LINES)
            )
        return Ending(job, time.monotonic() - start, returncode, complaint)

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        def stop(signum: int, frame: object) -> None:
            self.stopped.set()
            for process in list(self._processes):
                process.send_signal(signal.SIGTERM)

        previous = {
            number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
