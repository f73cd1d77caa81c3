"""Random tokens in the shape of a task, for timing where its data are not prepared.

What a step costs depends on the lengths of its sequences, not on what they say.
"""

from typing import Any, Literal

import numpy as np
import torch
from hydra.utils import get_class
from jaxtyping import Int
from omegaconf import DictConfig

from lra.tasks.base import Batch, Split, pad

NUM_EXAMPLES = 4096
"""A split; a longer run sees them again."""
QUANTILES = {
    "ListOps": {0: 501, 0.05: 538, 0.25: 702, 0.5: 954, 0.75: 1309, 0.95: 1799, 1: 1999},
    "Text": {0: 52, 0.25: 702, 0.5: 979, 0.75: 1614, 0.827: 2000, 0.9: 2617, 0.968: 4000, 1: 4000},
}
"""Lengths of expressions without brackets, and of reviews in bytes, cut as the task cuts them."""


class SyntheticTask:
    """The shape of a configured task, with labels and tokens from a fixed seed."""

    source_kind: Literal["official", "regenerated", "stand-in", "synthetic"] = "synthetic"
    source_name: str | None = "random tokens"
    fingerprint = "none: drawn from a fixed seed"
    val_is_test = False

    def __init__(self, config: DictConfig) -> None:
        """`config` is that of the run; its task says which shape."""
        shape: Any = get_class(config.task._target_)
        self.kind: str = shape.__name__
        self.vocab_size: int = shape.vocab_size
        self.num_classes: int = shape.num_classes
        self.num_sequences: int = shape.num_sequences
        resolution: int | None = config.task.get("resolution")
        given = config.task.get("max_seq_len") or (resolution and resolution**2)
        self.max_seq_len: int = given or shape.max_seq_len
        self.max_tokens: int = config.task.get("max_tokens") or self.max_seq_len

    def examples(self, split: Split) -> "SyntheticExamples":
        """Other examples for each split."""
        return SyntheticExamples(self, seed=("train", "val", "test").index(split))

    def lengths(self, generator: np.random.Generator, count: int) -> Int[np.ndarray, " count"]:
        """Lengths as in the task: of expressions, of reviews; documents and images are full."""
        if self.kind not in QUANTILES:
            return np.full(count, self.max_tokens)
        shares, lengths = zip(*QUANTILES[self.kind].items(), strict=True)
        drawn = np.interp(generator.random(count), shares, lengths)
        return drawn.clip(1, self.max_tokens).astype(np.int64)


class SyntheticExamples:
    """One split of random tokens."""

    def __init__(self, task: SyntheticTask, *, seed: int) -> None:
        generator = np.random.default_rng(seed)
        count = NUM_EXAMPLES * task.num_sequences
        self.task = task
        self.lengths = task.lengths(generator, count).reshape(-1, task.num_sequences)
        self.labels = generator.integers(task.num_classes, size=NUM_EXAMPLES)
        symbols = min(task.vocab_size, 256)
        self.tokens = generator.integers(symbols, size=task.max_seq_len, dtype=np.uint8)

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def batch(self, indices: Int[np.ndarray, " b"]) -> Batch:
        sequences = [self.tokens[:length] for length in self.lengths[indices].flatten()]
        tokens, mask = pad(sequences, self.task.max_seq_len)
        shape = (len(indices), self.task.num_sequences, self.task.max_seq_len)
        return Batch(tokens.view(shape), mask.view(shape), torch.from_numpy(self.labels[indices]))
