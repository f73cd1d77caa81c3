"""One run: from a composed configuration to a finished record."""

import logging
import secrets
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lra import provenance
from lra.checkpoint import seed_everything
from lra.correctness import write_correct
from lra.evaluate import Evaluation
from lra.model import Classifier
from lra.record import SCHEMA_VERSION, Record, RunDirectory, RunIdentity, Status, to_dict
from lra.tasks.base import Examples, Split, Task
from lra.tracker import Tracker
from lra.trainer import Trainer

log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "val", "test")
REPOSITORY = Path(__file__).parents[2]


def run(config: DictConfig, plain: DictConfig, directory: RunDirectory, command: str) -> Record:
    """Train, test, and leave everything in `directory`, going on with what is there.

    `plain` is the composition of the same task, protocol and attention without further overrides:
    what differs from it is recorded. A failure is recorded and raised.
    """
    device = choose_device(config.device)
    seed_everything(config.seed)
    task: Task = instantiate(config.task)
    refuse_false_label(task, config.label, config.choices.task)
    examples = {split: task.examples(split) for split in SPLITS}
    model = build_model(config, task)
    resume = directory.read() if directory.record.exists() else None
    record = start_record(config, plain, command, device, resume)
    record["data"] |= describe_data(task, examples)
    record["num_parameters"] = sum(p.numel() for p in model.parameters())
    if resume is not None:
        refuse_other_data(resume, record, directory)
    trainer = Trainer(
        instantiate(config.trainer),
        model=model,
        examples=examples,
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        directory=directory,
        device=device,
        seed=config.seed,
    )
    directory.begin(record)
    tracker: Tracker = instantiate(config.tracker)(
        directory=directory.path,
        config=record["config"],
        identity=RunIdentity(
            study=config.study,
            name=config.name,
            tags=(record["task"], record["attention"], record["protocol"]["name"]),
            run_id=record["run_id"],
        ),
    )
    try:
        train_and_test(trainer, tracker, record)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        record["status"] = "paused" if interrupted else "failed"
        if not interrupted:
            record["failure"] = {"type": type(error).__name__, "message": str(error)}
        raise
    finally:
        directory.write(record)
        tracker.finish(record)
    return record


def refuse_false_label(task: Task, label: str, task_choice: str) -> None:
    """Raise `ValueError` where results on a stand-in would be filed under the task's name."""
    if task.source_kind == "stand-in" and label == task_choice:
        raise ValueError(
            f"the data of task={task_choice} are a stand-in, {task.source_name}: its results need "
            f"a name of their own, label=NAME"
        )


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
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
    if stopped_by == "pause":
        record["status"] = "paused"
        log.info("paused at step %d; the same command goes on", trainer.progress.step)
        return
    last = trainer.evaluate("test")
    is_last_best = trainer.progress.best_step == trainer.progress.step
    if not is_last_best:
        trainer.use_best_weights()
    best = last if is_last_best else trainer.evaluate("test")
    record["result"] = result(trainer, best, last, stopped_by, record["result"]["headline"])
    answers = {"best": best.correct, "last": last.correct}
    record["result"]["test_correct"] = write_correct(trainer.directory, answers)
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
        "micro_batch_size": settings.micro_batch_size,
    }


def start_record(
    config: DictConfig,
    plain: DictConfig,
    command: str,
    device: torch.device,
    resume: Record | None,
) -> Record:
    """The record of a run that is about to start, or, given its old record, to go on."""
    changed = provenance.overrides(config, plain)
    governed = provenance.governed_keys(plain)
    environment = provenance.environment(device) | {
        "precision": config.trainer.precision,
        "compile": config.trainer.compile,
        "activation_checkpointing": config.model.activation_checkpointing,
    }
    resumes: list[dict[str, Any]] = []
    if resume is not None:
        resumes = [*resume["resumes"], {"environment": environment, "command": command}]
    running: Status = "running"
    return {
        "schema_version": SCHEMA_VERSION,
        "status": running,
        "run_id": secrets.token_hex(8) if resume is None else resume["run_id"],
        "study": config.study,
        "task": config.label,
        "attention": config.choices.attention,
        "seed": config.seed,
        "protocol": {
            "name": config.protocol.name,
            "overrides": {key: value for key, value in changed.items() if key in governed},
        },
        "overrides": changed,
        "command": command if resume is None else resume["command"],
        "config": to_dict(config),
        "git": provenance.git_state(REPOSITORY),
        "environment": environment if resume is None else resume["environment"],
        "resumes": resumes,
        "data": {},
        "num_parameters": None,
        "result": {"headline": config.protocol.headline},
        "cost": {},
        "failure": None,
    }


def describe_data(task: Task, examples: Mapping[Split, Examples]) -> dict[str, Any]:
    """Which data a run has seen."""
    return {
        "source_kind": task.source_kind,
        "source_name": task.source_name,
        "sha256": task.fingerprint,
        **{f"num_{split}": len(examples[split]) for split in SPLITS},
        "val_is_test": task.val_is_test,
    }


def refuse_other_data(old: Record, new: Record, directory: RunDirectory) -> None:
    """Raise `ValueError` if the data were replaced since the run began."""
    theirs, ours = old["data"]["sha256"], new["data"]["sha256"]
    if theirs != ours:
        raise ValueError(
            f"{directory.path} was begun on data with sha256 {theirs}, now it is {ours}; "
            f"choose another study=NAME, or restore the data"
        )
