"""Checkpoints that are whole or absent, and the random state that belongs in them."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

State = dict[str, Any]


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside `path` and rename it there: a reader never sees half of it."""
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save(state: State, path: Path) -> None:
    """Save a checkpoint atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path) -> State:
    """Load a checkpoint onto the CPU; executes no code from the file."""
    state: State = torch.load(path, map_location="cpu", weights_only=True)
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
