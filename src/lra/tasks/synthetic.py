"""Random data in the shape of a task, where its own are not at hand: to time steps, or to try out.

What a step costs depends on the lengths of its sequences, not on what they say. Labels are drawn at
random too: there is nothing to learn, and nothing to conclude.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import get_class
from omegaconf import DictConfig

from lra.tasks.preparation import prepare_once
from lra.tasks.store import Pairs, Sequences, Store

SPLITS = ("train", "val", "test")
LENGTHS: dict[str, dict[float, int]] = {
    "ListOps": {0: 501, 0.05: 538, 0.25: 702, 0.5: 954, 0.75: 1309, 0.95: 1799, 1: 1999},
    "Text": {0: 52, 0.25: 702, 0.5: 979, 0.75: 1614, 0.827: 2000, 0.9: 2617, 0.968: 4000, 1: 4000},
    "Retrieval": {0: 4000, 1: 4000},
}
"""Quantiles: of expressions without brackets, of reviews in bytes, documents as long as is read."""


def prepare(task: DictConfig, *, data_dir: Path, num_examples: int, seed: int) -> Store:
    """A store of a configured task with `num_examples` a split."""
    source = {
        "kind": "stand-in",
        "name": f"random {task.name}",
        "num_examples": num_examples,
        "seed": seed,
    }
    return prepare_once(data_dir, task.name, source, partial(_draw, task, num_examples, seed))


def _draw(task: DictConfig, num_examples: int, seed: int) -> dict[str, Sequences | Pairs]:
    generator = np.random.default_rng(seed)
    shape: Any = get_class(task._target_)
    if shape.num_sequences == 1:
        return {split: _sequences(task, num_examples, generator) for split in SPLITS}
    documents = _sequences(task, 2 * len(SPLITS) * num_examples, generator)
    numbers = np.arange(len(documents), dtype=np.int32).reshape(len(SPLITS), num_examples, 2)
    return {
        split: Pairs(documents.tokens, documents.offsets, pairs, documents.labels[pairs[:, 0]])
        for split, pairs in zip(SPLITS, numbers, strict=True)
    }


def _sequences(task: DictConfig, count: int, generator: np.random.Generator) -> Sequences:
    shape: Any = get_class(task._target_)
    full = task.get("max_seq_len") or task.get("resolution", 32) ** 2
    shares, lengths = zip(*LENGTHS.get(shape.__name__, {0: full, 1: full}).items(), strict=True)
    drawn = np.interp(generator.random(count), shares, lengths).astype(np.int64)
    offsets = np.concatenate([[0], drawn.cumsum()])
    symbols = min(shape.vocab_size, 256)
    return Sequences(
        tokens=generator.integers(symbols, size=offsets[-1], dtype=np.uint8),
        offsets=offsets,
        labels=generator.integers(shape.num_classes, size=count, dtype=np.uint8),
    )
