"""Images as sequences of gray values, shared by the tasks that read pixels."""

from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lra.tasks.base import Batch
from lra.tasks.store import Sequences

VOCAB_SIZE = 256
ZeroPixel = Literal["token", "padding"]


class PixelExamples:
    """One split of images, all of one size.

    Every pixel is a token, black ones too. `zero_pixel="padding"` instead masks pixels of value 0,
    as published runs do: such masks have holes.
    """

    def __init__(self, sequences: Sequences, zero_pixel: ZeroPixel) -> None:
        if zero_pixel not in ("token", "padding"):
            raise ValueError(f"protocol.zero_pixel={zero_pixel} is not one of token, padding")
        num_pixels = int(sequences.offsets[1])
        if (np.diff(sequences.offsets) != num_pixels).any():
            raise ValueError(f"images have different sizes; the first has {num_pixels} pixels")
        self.images = np.asarray(sequences.tokens).reshape(len(sequences), num_pixels)
        self.sequences = sequences
        self.zero_pixel = zero_pixel

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The class of every image."""
        return self.sequences.labels.astype(np.int64)

    def batch(self, indices: Int[np.ndarray, " b"]) -> Batch:
        """Images, row by row."""
        pixels: Tensor = torch.from_numpy(self.images[indices])[:, None]  # b 1 n
        is_token = pixels != 0 if self.zero_pixel == "padding" else torch.ones_like(pixels).bool()
        return Batch(pixels.long(), is_token, torch.from_numpy(self.labels[indices]))
