"""One run: from a composed configuration to a finished record."""

import logging
import math
import os
import statistics
import time
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lra.checkpoint import seed_everything, seed_of_process
from lra.distributed import OneProcess, joined_processes
from lra.evaluate import Evaluation
from lra.model import Classifier
from lra.ranks import own_rank
from lra.record import Record, RunDirectory
from lra.run_record import REPOSITORY as REPOSITORY
from lra.run_record import SPLITS as SPLITS
from lra.run_record import (
    describe_data,
    identify,
    refuse_other_data,
    refuse_other_world_size,
    start_record,
)
from lra.tasks.base import Task
from lra.tracker import NullTracker, Tracker
from lra.trainer import Trainer

log = logging.getLogger(__name__)


def run(config: DictConfig, plain: DictConfig, directory: RunDirectory, command: str) -> Record:
    """Train, test, and leave everything in `directory`, going on with what is there.

    `plain` is the composition of the same task, protocol and attention without further overrides:
    what differs from it is recorded. A failure is recorded and raised. Of several processes each
    runs this; the first one writes.
    """
    deadline = time.monotonic() + 60 * (config.trainer.time_budget_minutes or math.inf)
    follow_allotted_threads()
    device = choose_device(config.device)
    with joined_processes(device) as processes:
        trainer, record = prepare(config, plain, directory, command, device, processes, deadline)
        if not processes.is_first:
            train_and_test(trainer, NullTracker(), record)
            return record
        directory.begin(record)
        tracker: Tracker = instantiate(config.tracker)(
            directory=directory.path, config=record["config"], identity=identify(config, record)
        )
        try:
            train_and_test(trainer, tracker, record)
        except BaseException as error:
            record_failure(record, error, trainer)
            try:
                directory.write(record)
            except OSError as second:
                log.error("the record still says that the run is under way: %s", second)
            tracker.finish(record)
            raise
        directory.write(record)
        tracker.finish(record)
    return record


def prepare(
    config: DictConfig,
    plain: DictConfig,
    directory: RunDirectory,
    command: str,
    device: torch.device,
    processes: OneProcess,
    deadline: float,
) -> tuple[Trainer, Record]:
    """Everything that can be refused before the run takes its directory."""
    seed_everything(config.seed)
    task: Task = instantiate(config.task)
    refuse_false_label(task, config.label, config.choices.task)
    examples = {split: task.examples(split) for split in SPLITS}
    model = build_model(config, task)
    resume = processes.from_first(lambda: directory.read() if directory.record.exists() else None)
    record = start_record(config, plain, command, device, resume)
    record["data"] |= describe_data(task, examples)
    record["num_parameters"] = sum(p.numel() for p in model.parameters())
    if resume is not None:
        refuse_other_data(resume, record, directory)
        refuse_other_world_size(resume, processes.rank.world_size, directory)
    if not processes.is_first:  # the weights are the first one's, dropout and samples are not
        seed_everything(seed_of_process(config.seed, processes.rank.rank))
    trainer = Trainer(
        instantiate(config.trainer),
        model=model,
        examples=examples,
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        directory=directory,
        device=device,
        seed=config.seed,
        processes=processes,
        deadline=deadline,
    )
    return trainer, record


def record_failure(record: Record, error: BaseException, trainer: Trainer) -> None:
    """Say in the record why a run ends before it is completed."""
    # a cluster's handler may raise what looks like a failure, once it has the job queued again
    if trainer.interrupt.ended_run or isinstance(error, KeyboardInterrupt | SystemExit):
        record["status"] = "paused"
        return
    record["status"] = "failed"
    record["failure"] = {"type": type(error).__name__, "message": str(error)}


def follow_allotted_threads() -> None:
    """Use the processors that SLURM has given to this task, unless OMP_NUM_THREADS decides."""
    allotted = os.environ.get("SLURM_CPUS_PER_TASK")
    if allotted is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(int(allotted))


def refuse_false_label(task: Task, label: str, task_choice: str) -> None:
    """Raise `ValueError` where results on a stand-in would be filed under the task's name."""
    if task.source_kind == "stand-in" and label == task_choice:
        raise ValueError(
            f"the data of task={task_choice} are a stand-in, {task.source_name}: its results need "
            f"a name of their own, label=NAME"
        )


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one, else the CPU; of several processes each has its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{own_rank().local_rank % torch.cuda.device_count()}"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={name}: this machine has no CUDA device; use device=cpu")
        torch.cuda.set_device(device)
    return device


def build_model(config: DictConfig, task: Task) -> Classifier:
    """The classifier, with the configured attention in every layer."""
    if config.trainer.bucket and config.model.pooling == "padded_mean":
        raise ValueError(
            "trainer.bucket=true changes the padded length that model.pooling=padded_mean divides "
            "by; use trainer.bucket=false"
        )
    model: Classifier = instantiate(config.model)(
        instantiate(config.attention),
        vocab_size=task.vocab_size,
        max_seq_len=task.max_seq_len,
        num_sequences=task.num_sequences,
        num_classes=task.num_classes,
    )
    return model


def train_and_test(trainer: Trainer, tracker: Tracker, record: Record) -> None:
    """Train until a rule stops it; then read the test split, with the last and the best weights."""
    stopped_by = trainer.fit(tracker)
    record["cost"] = cost(trainer)
    if stopped_by in ("pause", "time_budget"):
        record["status"] = "paused"
        record["result"]["stopped_by"] = stopped_by
        log.info(
            "paused (%s) at step %d; the same command goes on", stopped_by, trainer.progress.step
        )
        return
    last = trainer.evaluate("test")
    is_last_best = trainer.progress.best_step == trainer.progress.step
    if not is_last_best:
        trainer.use_best_weights()
    best = last if is_last_best else trainer.evaluate("test")
    record["result"] = result(trainer, best, last, stopped_by, record["result"]["headline"])
    record["cost"]["test_seconds"] = last.seconds
    record["status"] = "completed"
    log.info(
        "test accuracy %.2f %% (best), %.2f %% (last) on %d examples; always one class: %.2f %%",
        100 * best.accuracy, 100 * last.accuracy, last.count, 100 * last.constant_accuracy,
    )  # fmt: skip


def result(
    trainer: Trainer, best: Evaluation, last: Evaluation, stopped_by: str, headline: str
) -> dict[str, Any]:
    """What a run has reached; accuracies are fractions, losses nats."""
    progress = trainer.progress
    return {
        "headline": headline,
        "test_accuracy_best": best.accuracy,
        "test_accuracy_last": last.accuracy,
        "test_loss_best": best.loss,
        "test_loss_last": last.loss,
        "test_count": last.count,
        "test_constant_accuracy": last.constant_accuracy,
        "best_val_loss": progress.best_val_loss,
        "best_val_accuracy": progress.best_val_accuracy,
        "val_count": progress.val_count,
        "best_step": progress.best_step,
        "final_step": progress.step,
        "final_lr": progress.lr,
        "stopped_by": stopped_by,
    }


def cost(trainer: Trainer) -> dict[str, Any]:
    """Time of training and of validation, apart, and the peak memory of training."""
    settings, progress = trainer.settings, trainer.progress
    steps = progress.step_seconds
    quartiles = statistics.quantiles(steps, n=4) if len(steps) > 1 else [None, None, None]
    is_gpu = trainer.device.type == "cuda"
    return {
        "train_seconds": progress.train_seconds,
        "eval_seconds": progress.eval_seconds,
        "wall_seconds_per_1000_steps": 1000
        * (progress.train_seconds + progress.eval_seconds)
        / progress.step,
        "seconds_per_step_median": statistics.median(steps) if steps else None,
        "seconds_per_step_quartiles": [quartiles[0], quartiles[2]],
        "num_timed_steps": len(steps),
        "num_warmup_steps": settings.timing_warmup_steps,
        "peak_allocated_bytes": progress.peak_bytes,
        "memory_method": "torch.cuda.max_memory_allocated"
        if is_gpu
        else "torch.profiler, one training step, with weights and optimizer state",
        "batch_size": settings.batch_size,
        "micro_batch_size": trainer.micro_batch.size,
        "eval_batch_size": trainer.eval_batch.size,
    }
