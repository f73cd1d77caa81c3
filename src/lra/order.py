"""Which examples each training step sees."""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from lra.tasks.base import Batch, Examples


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


class Reader:
    """Batches of consecutive steps, the next ones read in threads while a step trains.

    With `num_workers` = 0 a batch is read when it is asked for. The batches are the same, since
    each depends on its step alone; any step may be asked for at any time. `share` says which part
    of each batch is read, where several processes have one each.
    """

    def __init__(
        self, examples: Examples, order: DataOrder, *, num_workers: int, share: range | None = None
    ) -> None:
        self._examples = examples
        self._order = order
        self._share = share or range(order.batch_size)
        self._num_workers = num_workers
        self._executor = ThreadPoolExecutor(num_workers) if num_workers else None
        self._ahead: dict[int, Future[Batch]] = {}

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        if self._executor is None:
            return self._read(step)
        wanted = range(step, step + self._num_workers + 1)
        for other in set(self._ahead) - set(wanted):
            self._ahead.pop(other).cancel()
        for following in wanted:
            if following not in self._ahead:
                self._ahead[following] = self._executor.submit(self._read, following)
        return self._ahead.pop(step).result()

    def _read(self, step: int) -> Batch:
        return self._examples.batch(self._order.indices(step)[self._share])
