"""Compare how fast batches are read with how fast training consumes them.

    python scripts/bench_loader.py                      # every task that is prepared
    python scripts/bench_loader.py task=listops,text trainer.micro_batch_size=32

Training is that of `v_mean`, the cheapest method, at the task's batch size. Reading and training
take turns, so that both meet the same load of the machine; medians are shown. "open" is the time
from nothing to the first batch, with sizes and with checksums compared. Other overrides are those
of scripts/train.py. Exits with 1 if reading is less than 20 times as fast as training, or opening
takes more than 0.3 seconds without checksums.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tabulate import tabulate
from tqdm import tqdm

from lra.checkpoint import seed_everything
from lra.command_line import parse_overrides
from lra.measure import synchronize
from lra.order import DataOrder
from lra.record import RunDirectory
from lra.run import build_model, choose_device
from lra.run_record import SPLITS
from lra.tasks.base import Task
from lra.tasks.preparation import survey
from lra.trainer import Trainer

TASKS = ("listops", "text", "retrieval", "image", "pathfinder")
NUM_ROUNDS = 4
BATCHES_PER_ROUND = 25
MIN_RATIO = 20
MAX_OPEN_SECONDS = 0.3


class LoaderSpeed(NamedTuple):
    """One task; reading and training in examples per second."""

    task: str
    batch_size: int
    reading: float
    training: float
    open_seconds: float
    verified_open_seconds: float

    @property
    def ratio(self) -> float:
        """Reading to training."""
        return self.reading / self.training

    @property
    def is_enough(self) -> bool:
        """Whether training never waits for data."""
        return self.ratio >= MIN_RATIO and self.open_seconds <= MAX_OPEN_SECONDS

    def cells(self) -> list[str]:
        """A row of the table."""
        rates = [f"{self.reading:,.0f}", f"{self.training:,.1f}", f"{self.ratio:,.0f}"]
        opened = [f"{self.open_seconds:.3f}", f"{self.verified_open_seconds:.3f}"]
        return [self.task, str(self.batch_size), *rates, *opened]


def main(arguments: list[str]) -> int:
    """Measure, print a table, return the exit status."""
    names = [a.removeprefix("task=") for a in arguments if a.startswith("task=")]
    others = [a for a in arguments if not a.startswith("task=")]
    with hydra.initialize(version_base="1.3", config_path="../conf"):
        data_dir = Path(hydra.compose("train", others).data_dir)
        prepared = {data.name for data in survey(data_dir, verify=False)}
        tasks = names[0].split(",") if names else TASKS
        configs = [
            hydra.compose("train", [f"task={task}", "attention=v_mean", *others]) for task in tasks
        ]
    if not names:
        configs = [config for config in configs if config.task.name in prepared]
    speeds = [measure(config) for config in tqdm(configs, disable=None, leave=False)]
    rows = [speed.cells() for speed in speeds]
    header = ["task", "batch", "read/s", "trained/s", "ratio", "open s", "open s, verified"]
    print(tabulate(rows, header, disable_numparse=True))
    return int(not all(speed.is_enough for speed in speeds))


def measure(config: DictConfig) -> LoaderSpeed:
    """Open the task, then let reading and training take turns."""
    opened = [open_seconds(config, verify) for verify in (False, True)]
    seed_everything(config.seed)
    device, task = choose_device(config.device), instantiate(config.task, verify=False)
    with tempfile.TemporaryDirectory() as directory:
        trainer = build_trainer(config, task, device, RunDirectory(Path(directory)))
        size = trainer.settings.batch_size
        trainer.train_step()
        reading, training = [], []
        for first in range(0, NUM_ROUNDS * BATCHES_PER_ROUND, BATCHES_PER_ROUND):
            start = time.perf_counter()
            for step in range(first, first + BATCHES_PER_ROUND):
                trainer.reader.batch(step)
            reading.append((time.perf_counter() - start) / BATCHES_PER_ROUND)
            synchronize(device)
            start = time.perf_counter()
            trainer.train_step()
            synchronize(device)
            training.append(time.perf_counter() - start)
    speed = [size / statistics.median(seconds) for seconds in (reading, training)]
    return LoaderSpeed(config.task.name, size, *speed, *opened)


def open_seconds(config: DictConfig, verify: bool) -> float:
    """Seconds from nothing to the first training batch."""
    start = time.perf_counter()
    task: Task = instantiate(config.task, verify=verify)
    examples, size = task.examples("train"), config.trainer.batch_size
    order = DataOrder(seed=config.seed, num_examples=len(examples), batch_size=size)
    examples.batch(order.indices(0))
    return time.perf_counter() - start


def build_trainer(
    config: DictConfig, task: Task, device: torch.device, directory: RunDirectory
) -> Trainer:
    """A trainer as a run builds it."""
    return Trainer(
        instantiate(config.trainer),
        model=build_model(config, task),
        examples={split: task.examples(split) for split in SPLITS},
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        directory=directory,
        device=device,
        seed=config.seed,
    )


if __name__ == "__main__":
    sys.exit(main(parse_overrides(sys.argv[1:], __doc__)))
