"""What of a trainer goes into `last.pt`, so that a run goes on from there bit for bit."""

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from lra.checkpoint import State, random_state, restore_random_state
from lra.progress import Progress

if TYPE_CHECKING:
    from lra.trainer import Trainer

log = logging.getLogger(__name__)


def collect_state(trainer: "Trainer") -> State:
    """The whole state in the first process; lists hold a value for each process."""
    gather = trainer.processes.gather
    return {
        "progress": asdict(trainer.progress),
        "model": trainer.model.state_dict(),
        "best_weights": trainer.best_weights,
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "totals": gather(trainer.totals),
        "random": gather(random_state()),
        "batch_sizes": gather((trainer.micro_batch.size, trainer.eval_batch.size)),
        "num_threads": torch.get_num_threads(),
    }


def restore_state(trainer: "Trainer", state: State) -> None:
    """Put a trainer where `collect_state` found it."""
    rank = trainer.processes.rank.rank
    trainer.progress = Progress(**state["progress"])
    trainer.model.load_state_dict(state["model"])
    trainer.best_weights = state["best_weights"]
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scheduler.load_state_dict(state["scheduler"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.totals.copy_(state["totals"][rank])
    trainer.micro_batch.size, trainer.eval_batch.size = state["batch_sizes"][rank]
    restore_random_state(state["random"][rank])
    if state["num_threads"] != torch.get_num_threads():
        log.warning(
            "this run had %d threads and now has %d: sums may round differently",
            state["num_threads"], torch.get_num_threads(),
        )  # fmt: skip
