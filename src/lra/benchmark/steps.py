"""Whole training steps of a task, timed micro-batch by micro-batch with the trainer itself.

A step at the batch size of the paper is so many micro-batches and one update of the weights; both
are measured, and the step is put together from them. Evaluation is measured on some examples and
counted up to the whole split.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from lra.benchmark.interleave import interleave, num_rounds_within, stopwatch
from lra.checkpoint import seed_everything
from lra.paths import CONF_DIR
from lra.record import RunDirectory
from lra.run import build_model, choose_device
from lra.run_record import SPLITS
from lra.tasks import synthetic
from lra.tasks.base import Task
from lra.trainer import Trainer

FEWEST_ROUNDS = 2
NUM_EXAMPLES = 1024
"""Random ones, a split; who needs more sees them again."""
PACKED_SUFFIX = "_packed"
"""Of the label of a variant without padding."""
VALIDATION_COUNTS = {"listops": 2000, "retrieval": 18090, "image": 5000, "pathfinder": 20000}
"""Examples of the official splits; Text's depends on the protocol."""
TEXT_VALIDATION_COUNTS = {"train_split": 2500, "test": 25000}

Measures = dict[str, Any]


def compose_run(task: str, attention: str, overrides: tuple[str, ...]) -> DictConfig:
    """The configuration of scripts/train.py for a task and a variant."""
    names = [f"choices.task={task}", f"choices.attention={attention}"]
    chosen = [f"task={task}", f"attention={attention}", "tracker=none"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", [*chosen, *names, *overrides])


def open_task(config: DictConfig, directory: Path) -> Task:
    """The prepared data of a configuration, or random data of their shape, kept in `directory`."""
    try:
        task: Task = instantiate(config.task, verify=False)
    except InstantiationException as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        synthetic.prepare(config.task, data_dir=directory, num_examples=NUM_EXAMPLES, seed=0)
        task = instantiate(config.task, verify=False, data_dir=str(directory))
    return task


def build_trainer(config: DictConfig, task: Task, directory: Path) -> Trainer:
    """The trainer as a run builds it; every variant starts from the same seed."""
    seed_everything(config.seed)
    return Trainer(
        instantiate(config.trainer),
        model=build_model(config, task),
        examples={split: task.examples(split) for split in SPLITS},
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        directory=RunDirectory(directory),
        device=choose_device(config.device),
        seed=config.seed,
    )


class Steps:
    """What a step of one variant consists of."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def accumulate(self) -> None:
        """Read a micro-batch, and its gradient."""
        self.trainer.accumulate_gradient(self.trainer.reader.batch(self.trainer.progress.step))

    def update(self) -> None:
        """Clip, and the optimizer's and the schedule's step."""
        self.trainer.update_weights()

    def evaluate(self) -> None:
        """A forward pass over some validation examples."""
        self.trainer.evaluate("val")


@dataclass(frozen=True)
class StepPlan:
    """How the steps of a task are measured."""

    task: str
    overrides: tuple[str, ...]
    micro_batch_size: int
    num_rounds: int
    budget_seconds: float
    """Of a variant, for its rounds."""

    def config(self, attention: str, extra: tuple[str, ...] = ()) -> DictConfig:
        """That of a run, but its batch is one micro-batch, and so is what it evaluates."""
        size = min(self.micro_batch_size, self.batch_size(attention))
        sizes = [f"trainer.{key}={size}" for key in SIZES]
        return compose_run(self.task, attention, (*self.overrides, *extra, *sizes))

    def batch_size(self, attention: str) -> int:
        """The batch of a whole step: the paper's, unless overridden."""
        size: int = compose_run(self.task, attention, self.overrides).trainer.batch_size
        return size


SIZES = ("batch_size", "micro_batch_size", "eval_batch_size", "max_eval_examples")


def measure_steps(
    plan: StepPlan, variants: Mapping[str, DictConfig], directory: Path
) -> tuple[dict[str, Measures], dict[str, str]]:
    """Measures of each variant, in turns, and the reasons of those that were not measured.

    The first micro-batch decides: where the fewest rounds would take longer than the budget, a
    variant is left out.
    """
    runs: dict[str, Steps] = {}
    stopped: dict[str, str] = {}
    slowest = 0.0
    for label, config in variants.items():
        steps = Steps(build_trainer(config, open_task(config, directory), directory))
        clock = stopwatch(steps.trainer.device)
        seconds = clock(steps.accumulate) + clock(steps.update) + clock(steps.evaluate)
        if FEWEST_ROUNDS * seconds > plan.budget_seconds:
            stopped[label] = (
                f"{FEWEST_ROUNDS} micro-batches would take {FEWEST_ROUNDS * seconds:.0f} s, over "
                f"time_budget_seconds={plan.budget_seconds:g}"
            )
        else:
            runs[label] = steps
            slowest = max(slowest, seconds)
    if not runs:
        return {}, stopped
    samples = interleave(
        {
            label: {
                "accumulate_seconds": steps.accumulate,
                "update_seconds": steps.update,
                "evaluate_seconds": steps.evaluate,
            }
            for label, steps in runs.items()
        },
        num_rounds=num_rounds_within(
            plan.budget_seconds, slowest, fewest=FEWEST_ROUNDS, most=plan.num_rounds
        ),
        num_warmup=0,  # the first micro-batch was
        clock=clock,
    )
    return {label: {**samples[label], **shape_of(variants[label])} for label in runs}, stopped


def shape_of(config: DictConfig) -> Measures:
    """What a step is put together from."""
    return {
        "micro_batch_size": config.trainer.micro_batch_size,
        "check_steps": config.trainer.check_steps,
        "validation_count": validation_count(config),
    }


def validation_count(config: DictConfig) -> int | None:
    """Examples of the official validation split; None for a task without one."""
    name = str(config.task.name)
    if name == "text":
        return TEXT_VALIDATION_COUNTS[str(config.protocol.text_val)]
    return VALIDATION_COUNTS.get(name.partition("32_")[0])


def seconds_per_step(measures: Measures, batch_size: int) -> float:
    """Training time of a step at a batch size."""
    num_micro_batches = batch_size / measures["micro_batch_size"]
    accumulate = statistics.median(measures["accumulate_seconds"])
    return num_micro_batches * accumulate + statistics.median(measures["update_seconds"])


def evaluation_seconds_per_step(measures: Measures) -> float | None:
    """Time of evaluating the whole validation split, spread over the steps between two checks."""
    if measures["validation_count"] is None:
        return None
    seconds = statistics.median(measures["evaluate_seconds"]) / measures["micro_batch_size"]
    return float(seconds * measures["validation_count"] / measures["check_steps"])
