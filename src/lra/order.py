"""Which examples each training step sees."""

from functools import lru_cache

import numpy as np
from jaxtyping import Int


class DataOrder:
    """A pure function of (seed, step), so that every variant sees the same batches.

    Epochs are permutations drawn from (seed, epoch) and laid end to end; a step takes the next
    `batch_size` examples. The position in the data is the step itself: a resumed run needs no
    more, and no example is dropped at the end of an epoch.
    """

    def __init__(self, *, seed: int, num_examples: int, batch_size: int) -> None:
        self.num_examples = num_examples
        self.batch_size = batch_size
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(num_examples)
        )

    def indices(self, step: int) -> Int[np.ndarray, " b"]:
        """The examples of a step, counted from 0."""
        first = step * self.batch_size
        epochs, offsets = np.divmod(np.arange(first, first + self.batch_size), self.num_examples)
        return np.concatenate([self._epoch(e)[offsets[epochs == e]] for e in np.unique(epochs)])
