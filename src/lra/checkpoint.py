"""Checkpoints that are whole or absent, and the random state that belongs in them."""

import random
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from lra.files import write_atomically

State = dict[str, Any]


class DamagedCheckpointError(ValueError):
    """A checkpoint that cannot be read."""


def save(state: State, path: Path) -> None:
    """Save a checkpoint atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path) -> State:
    """Load a checkpoint onto the CPU; executes no code from the file.

    Raises `DamagedCheckpointError`, with what can be done.
    """
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0][:100] or "the file ends too early"
        raise DamagedCheckpointError(
            f"{path} is damaged ({reason}); put a copy back, or delete it to begin the run anew"
        ) from error
    return state


def random_state() -> State:
    """The states of all generators that a variant may draw from."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (users' draws)
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, cached),  # type: ignore[attr-defined]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: State) -> None:
    """Continue all generators where `random_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (a user's variant may draw from it)
    torch.manual_seed(seed)


def seed_of_process(seed: int, rank: int) -> int:
    """A seed of its own for each process of a run; the first one's is `seed`."""
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]) if rank else seed
