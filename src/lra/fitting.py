"""How many examples go through the model at once, and what to do when they do not fit."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from lra.checkpoint import random_state, restore_random_state

log = logging.getLogger(__name__)

T = TypeVar("T")


class OutOfMemoryError(MemoryError):
    """The examples that go through the model at once do not fit."""


class FittingSize:
    """A number of examples, as set by `key`; where that is allowed, halved until they fit."""

    def __init__(self, key: str, size: int, *, may_halve: bool) -> None:
        self.key = key
        self.size = size
        self.may_halve = may_halve

    def run(self, work: Callable[[int], T]) -> T:
        """`work(size)`, done again from the same random state with half of it where need be.

        Raises `OutOfMemoryError`, with the size to try, if it may not be halved.
        """
        while True:
            random = random_state() if self.may_halve else None
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1 or not self.may_halve:
                    raise OutOfMemoryError(self._advice()) from error
            # here, since the error has held what the attempt had allocated
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            assert random is not None
            restore_random_state(random)
            log.warning(
                "out of memory with %s=%d: going on with %d", self.key, self.size, self.size // 2
            )
            self.size //= 2

    def _advice(self) -> str:
        failed = f"out of memory with {self.key}={self.size}"
        if self.size == 1:
            return f"{failed}, a single example; try model.activation_checkpointing=true"
        return (
            f"{failed}; try {self.key}={self.size // 2}, or trainer.micro_batch_size=auto, which "
            f"halves it until it fits"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the host or of the device, is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch raises a plain RuntimeError for the host's memory and for some of CUDA's libraries
    signs = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
