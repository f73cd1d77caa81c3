"""A sweep of twelve small runs, killed again and again, against one left in peace.

    python scripts/chaos.py kills=100             # minutes; kills=12 is a test
    python scripts/chaos.py kills=100 seed=3      # other moments

SIGKILL meets the whole launch at a random time, the whole launch while a file is being written, or
one job of several side by side. The same command is started again until all runs are completed; a
sweep that is completed before all kills are spent makes way for the next. Then no run may be lost,
none may have run again once it was finished, and weights and metrics must be the same bits.
"""

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lra.command_line import parse_overrides
from lra.lock import Lock
from lra.tasks.listops_generator import ListOpsRule
from lra.tasks.listops_preparation import prepare

TRAIN = Path(__file__).with_name("train.py")
FULL_LAUNCH_EVERY = 8
"""So often a launch is a command of its own, with runs side by side; else a quicker fork."""
RUNS = (
    "-m",
    "study=chaos",
    "task=listops_short",
    "attention=softmax,v_mean,skeinformer,linformer",
    "seed=0,1,2",
    "num_features=8",
    "trainer.batch_size=16",
    "trainer.max_steps=24",
    "trainer.warmup_steps=3",
    "trainer.check_steps=8",
    "trainer.min_steps=0",
    "trainer.checkpoint_minutes=0",  # a save after every step
    "trainer.max_eval_examples=40",
    "model.embed_dim=32",
    "model.hidden_dim=32",
    "tracker=none",
)
NUM_RUNS = 12
IN_ONE_PROCESS = "hydra.sweeper.isolate=false"
SIDE_BY_SIDE = ("launcher=joblib", "hydra.launcher.n_jobs=2")


@dataclass
class Settings:
    """What is said on the command line."""

    kills: int = 100
    seed: int = 0


@dataclass
class Launch:
    """A sweep that has been started, in a process group of its own."""

    pid: int
    has_ended: bool = False

    def poll(self) -> bool:
        """Whether it has ended."""
        if not self.has_ended:
            self.has_ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self.has_ended

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        os.killpg(self.pid, signal.SIGKILL)
        if not self.has_ended:
            os.waitpid(self.pid, 0)
        self.has_ended = True


@dataclass
class Sweep:
    """Twelve runs in a folder."""

    folder: Path
    overrides: tuple[str, ...]
    finished: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """When the record and the weights of each completed run were written."""

    def records(self) -> dict[Path, dict[str, Any]]:
        """The records so far, by run directory."""
        return {p.parent: json.loads(p.read_text()) for p in self.folder.rglob("record.json")}

    def is_completed(self) -> bool:
        """Whether all runs are completed; also remembers which ones are."""
        completed = [d for d, record in self.records().items() if record["status"] == "completed"]
        for directory in completed:
            self.finished.setdefault(directory, written_at(directory))
        return len(completed) == NUM_RUNS

    def fork(self) -> Launch:
        """Launch without the seconds that it takes to load torch: that has been done here."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setsid()
                os.chdir(self.folder)
                with Path("log").open("ab") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                sys.argv = [str(TRAIN), *self.overrides, IN_ONE_PROCESS]
                runpy.run_path(str(TRAIN), run_name="__main__")
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return Launch(pid)

    def start(self) -> Launch:
        """Launch as a user does, two runs side by side, each a process."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(TRAIN), *self.overrides, *SIDE_BY_SIDE],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process.returncode = 0  # it is waited for here, by its pid
        return Launch(process.pid)

    def jobs(self) -> list[int]:
        """Processes that are at a run."""
        owners = [Lock(path).owner() for path in self.folder.rglob("lock")]
        return [owner.pid for owner in owners if owner is not None]

    def temporaries(self) -> set[tuple[Path, int]]:
        """Files that are being written, or were when a process was killed."""
        found = set()
        for path in self.folder.rglob("*.tmp*"):
            with suppress(FileNotFoundError):  # whole by now
                found.add((path, path.stat().st_ino))
        return found


def written_at(directory: Path) -> tuple[int, int]:
    """When a run last wrote its record and its state."""
    record, last = directory / "record.json", directory / "last.pt"
    return record.stat().st_mtime_ns, last.stat().st_mtime_ns


class Killer:
    """Kills at moments that a seed decides."""

    def __init__(self, seed: int, longest_seconds: float) -> None:
        self.random = random.Random(seed)
        self.longest_seconds = longest_seconds
        self.kinds: Counter[str] = Counter()
        self.num_half_files = 0

    def launch(self, sweep: Sweep) -> Launch:
        """The next launch."""
        is_full = self.kinds.total() % FULL_LAUNCH_EVERY == FULL_LAUNCH_EVERY - 1
        return sweep.start() if is_full else sweep.fork()

    def strike(self, sweep: Sweep, launch: Launch) -> None:
        """Kill at the next moment, unless the launch ends before."""
        is_full = self.kinds.total() % FULL_LAUNCH_EVERY == FULL_LAUNCH_EVERY - 1
        if is_full:
            self._strike_job(sweep, launch)
            return
        waits_for_write = self.random.random() < 0.5
        moment = time.monotonic() + self.random.uniform(0, self.longest_seconds)
        while time.monotonic() < moment:
            if launch.poll():
                return
            time.sleep(0.001)
        stale = sweep.temporaries()
        while waits_for_write and sweep.temporaries() <= stale:
            if launch.poll():
                return
        launch.kill()
        self.kinds["launch, in a write" if waits_for_write else "launch"] += 1
        self.num_half_files += not sweep.temporaries() <= stale

    def _strike_job(self, sweep: Sweep, launch: Launch) -> None:
        while not (jobs := sweep.jobs()):
            if launch.poll():
                return
            time.sleep(0.01)
        time.sleep(self.random.uniform(0, 2 * self.longest_seconds))
        jobs = sweep.jobs() or jobs
        try:
            os.kill(self.random.choice(jobs), signal.SIGKILL)
        except ProcessLookupError:  # it has ended by itself
            return
        self.kinds["one job"] += 1


def run_under_fire(sweep: Sweep, killer: Killer, kills: int) -> None:
    """Launch until all runs are completed, killing until all kills are spent."""
    launch = None
    while not sweep.is_completed():
        if launch is None or launch.poll():
            launch = killer.launch(sweep)
        if killer.kinds.total() < kills:
            killer.strike(sweep, launch)
        else:
            while not launch.poll():
                time.sleep(0.05)
    if launch is not None and not launch.poll():
        launch.kill()


def faults(sweep: Sweep, reference: Sweep) -> list[str]:
    """What a sweep under fire has lost, done twice, or computed differently."""
    found = [
        f"{directory}: ran again after it was finished"
        for directory, times in sweep.finished.items()
        if times != written_at(directory)
    ]
    for directory, expected in reference.records().items():
        ours = sweep.folder / directory.relative_to(reference.folder)
        if json.loads((ours / "record.json").read_text())["result"] != expected["result"]:
            found.append(f"{ours}: another result")
        if metrics(ours) != metrics(directory):
            found.append(f"{ours}: other metrics")
        for name in ("last.pt", "best.pt"):
            if not equal_weights(ours / name, directory / name):
                found.append(f"{ours / name}: other weights")
    return found


def metrics(directory: Path) -> list[dict[str, float]]:
    """The metrics of each check, but for times."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def equal_weights(ours: Path, theirs: Path) -> bool:
    """Whether two checkpoints hold the same bits."""
    a: Mapping[str, torch.Tensor] = torch.load(ours)["model"]
    b: Mapping[str, torch.Tensor] = torch.load(theirs)["model"]
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def main() -> None:
    """Prepare, run in peace, run under fire, compare."""
    words = parse_overrides(sys.argv[1:], __doc__)
    settings = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_dotlist(words))
    folder = Path(tempfile.mkdtemp(prefix="lra-chaos-"))
    prepare(
        name="listops_short",
        data_dir=str(folder / "data"),
        rule=ListOpsRule(min_length=4, max_length=64, max_depth=4, max_args=5),
        num_examples={"train": 512, "val": 70, "test": 50},
        seed=0,
        num_workers=1,
        progress=lambda count: None,
    )
    overrides = (*RUNS, f"data_dir={folder / 'data'}")
    reference = Sweep(folder / "in_peace", overrides)
    reference.folder.mkdir()
    start = time.monotonic()
    launch = reference.fork()
    while not launch.poll():
        time.sleep(0.05)
    if not reference.is_completed():
        sys.exit(f"the sweep does not even run in peace: {reference.folder / 'log'}")
    seconds = time.monotonic() - start
    print(f"in peace: {NUM_RUNS} runs in {seconds:.0f} s")
    killer = Killer(settings.seed, longest_seconds=seconds / 5)
    found, num_sweeps, start = [], 0, time.monotonic()
    while killer.kinds.total() < settings.kills:
        num_sweeps += 1
        sweep = Sweep(folder / f"under_fire_{num_sweeps}", overrides)
        sweep.folder.mkdir()
        run_under_fire(sweep, killer, settings.kills)
        found += faults(sweep, reference)
    print(
        f"under fire: {num_sweeps * NUM_RUNS} runs in {time.monotonic() - start:.0f} s; kills: "
        + ", ".join(f"{number} of {kind}" for kind, number in sorted(killer.kinds.items()))
        + f"; {killer.num_half_files} left half a file behind (seed {settings.seed})"
    )
    if found:
        sys.exit("\n".join([f"{len(found)} faults, see {folder}", *found]))
    shutil.rmtree(folder)
    print("no run lost, none repeated, all weights and metrics bit-identical")


if __name__ == "__main__":
    main()
