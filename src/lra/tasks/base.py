"""The contract of a task: what a batch is, and where its examples come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from lra.layout import sequence_lengths

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Batch:
    """s sequences an example: 1, or 2 where two documents are compared."""

    tokens: Int[Tensor, "b s n"]
    """Ids in [0, vocab_size); whatever stands at padding is never read."""
    token_mask: Bool[Tensor, "b s n"]
    """True at tokens."""
    labels: Int[Tensor, " b"]
    """In [0, num_classes)."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(
            self.tokens.to(device, non_blocking=True),
            self.token_mask.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
        )

    def copy_(self, other: "Batch") -> None:
        """Overwrite this batch with another of its shape."""
        self.tokens.copy_(other.tokens, non_blocking=True)
        self.token_mask.copy_(other.token_mask, non_blocking=True)
        self.labels.copy_(other.labels, non_blocking=True)

    def lengths(self) -> list[int]:
        """`sequence_lengths` of the mask; before `to`, it makes no host wait for a GPU."""
        return sequence_lengths(self.token_mask)

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of at most `size` examples, in order."""
        pieces = (self.tokens.split(size), self.token_mask.split(size), self.labels.split(size))
        return [Batch(*piece) for piece in zip(*pieces, strict=True)]

    def widths(self) -> Int[Tensor, " b"]:
        """What each example is padded to in a bucket: the next power of two of its length."""
        max_seq_len = self.tokens.shape[-1]
        lengths = torch.tensor(self.lengths()).view(len(self), -1).amax(1).tolist()
        return torch.tensor([min(1 << (n - 1).bit_length(), max_seq_len) for n in lengths])

    def buckets(self, size: int) -> list["Batch"]:
        """Micro-batches of at most `size` examples of one width, the narrowest first.

        Examples of one width stay in their order.
        """
        widths = self.widths()
        pieces = []
        for width in widths.unique().tolist():
            chosen = widths == width
            tokens, mask = self.tokens[chosen, :, :width], self.token_mask[chosen, :, :width]
            pieces += Batch(tokens, mask, self.labels[chosen]).split(size)
        return pieces


@runtime_checkable
class Examples(Protocol):
    """One split: finite, in fixed order, without randomness."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The label of every example."""
        ...

    def batch(self, indices: Int[np.ndarray, " b"]) -> Batch:
        """The examples at `indices`, padded to the task's `max_seq_len`."""
        ...


@runtime_checkable
class Task(Protocol):
    """Prepared data and what a model has to know about them."""

    vocab_size: int
    num_classes: int
    max_seq_len: int
    """Every batch is padded to it, so that the time of a step compares across runs."""
    num_sequences: int
    source_kind: Literal["official", "regenerated", "stand-in"]
    source_name: str | None
    """What a stand-in is: its results are shown under this name, never under the task's."""
    fingerprint: str
    """sha256 of the content of the prepared data."""
    val_is_test: bool
    """Whether the validation split is the test split, as in published runs on Text."""

    def examples(self, split: Split) -> Examples:
        """The examples of a split."""
        ...


def pad(
    sequences: Sequence[UInt8[np.ndarray, "_"]], max_seq_len: int
) -> tuple[Int[Tensor, "b 1 n"], Bool[Tensor, "b 1 n"]]:
    """Stack sequences, cut or filled with zeros to `max_seq_len`; the mask is True at tokens."""
    shape = (len(sequences), max_seq_len)
    tokens, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for row, is_token, sequence in zip(tokens, mask, sequences, strict=True):
        length = min(len(sequence), max_seq_len)
        row[:length] = sequence[:length]
        is_token[:length] = True
    return torch.from_numpy(tokens)[:, None], torch.from_numpy(mask)[:, None]
