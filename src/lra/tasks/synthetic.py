"""Random sequences in the shapes of the five tasks, to try a pipeline where no data are at hand.

Labels are drawn at random too: there is nothing to learn, and nothing to conclude.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lra.tasks.listops_generator import VOCAB
from lra.tasks.preparation import prepare_once
from lra.tasks.store import Pairs, Sequences, Store

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Shape:
    """Lengths, uniform from the shortest to the longest, and numbers of symbols and classes."""

    min_length: int
    max_length: int
    num_symbols: int
    num_classes: int


SHAPES = {
    "listops": Shape(501, 1999, len(VOCAB), 10),
    "text": Shape(100, 4000, 256, 2),
    "retrieval": Shape(100, 4000, 256, 2),
    "image": Shape(1024, 1024, 256, 10),
    "pathfinder": Shape(1024, 1024, 256, 2),
}


def prepare(task: str, *, name: str, data_dir: Path, num_examples: int, seed: int) -> Store:
    """A store `data_dir/name` with `num_examples` a split; raises `ValueError` for another task."""
    if task not in SHAPES:
        raise ValueError(f"task={task} has no synthetic form; there are {', '.join(SHAPES)}")
    source = {
        "kind": "stand-in",
        "name": f"random {task}",
        "num_examples": num_examples,
        "seed": seed,
    }
    build = partial(_pairs if task == "retrieval" else _sequences, SHAPES[task], num_examples, seed)
    return prepare_once(data_dir, name, source, build)


def _sequences(shape: Shape, num_examples: int, seed: int) -> dict[str, Sequences]:
    generator = np.random.default_rng(seed)
    return {split: _draw(shape, num_examples, generator) for split in SPLITS}


def _pairs(shape: Shape, num_examples: int, seed: int) -> dict[str, Pairs]:
    generator = np.random.default_rng(seed)
    documents = _draw(shape, 2 * len(SPLITS) * num_examples, generator)
    numbers = np.arange(len(documents), dtype=np.int32).reshape(len(SPLITS), num_examples, 2)
    labels = generator.integers(shape.num_classes, size=(len(SPLITS), num_examples), dtype=np.uint8)
    return {
        split: Pairs(documents.tokens, documents.offsets, pairs, classes)
        for split, pairs, classes in zip(SPLITS, numbers, labels, strict=True)
    }


def _draw(shape: Shape, count: int, generator: np.random.Generator) -> Sequences:
    lengths = generator.integers(shape.min_length, shape.max_length + 1, size=count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(
        tokens=generator.integers(shape.num_symbols, size=offsets[-1], dtype=np.uint8),
        offsets=offsets.astype(np.int64),
        labels=generator.integers(shape.num_classes, size=count, dtype=np.uint8),
    )
