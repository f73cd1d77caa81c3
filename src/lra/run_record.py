"""What the record of a run says at its start, and what keeps it from going on."""

import secrets
from collections.abc import Mapping
from typing import Any, get_args

import torch
from omegaconf import DictConfig

from lra import provenance
from lra.paths import REPOSITORY
from lra.record import SCHEMA_VERSION, Record, RunDirectory, RunIdentity, Status, to_dict
from lra.tasks.base import Examples, Split, Task

SPLITS: tuple[Split, ...] = get_args(Split)


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
        "cuda_graph": config.trainer.cuda_graph,
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


def identify(config: DictConfig, record: Record) -> RunIdentity:
    """How a run is filed with a tracker."""
    return RunIdentity(
        study=config.study,
        name=config.name,
        tags=(record["task"], record["attention"], record["protocol"]["name"]),
        run_id=record["run_id"],
    )


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


def refuse_other_world_size(old: Record, world_size: int, directory: RunDirectory) -> None:
    """Raise `ValueError` if the run was begun by another number of processes."""
    theirs = old["environment"]["world_size"]
    if theirs != world_size:
        raise ValueError(
            f"{directory.path} was begun by {theirs} process(es), now there are {world_size}: each "
            f"has its own random state, which cannot be divided anew; start {theirs}, or choose "
            f"another study=NAME"
        )
