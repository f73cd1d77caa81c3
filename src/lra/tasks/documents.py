"""Pairs of documents on their way into a store: each text is kept once, whatever its name.

A text is told by its content, not by the id that a source gives it. So an id with two texts does no
harm, and texts that are shared under two ids are still stored once.
"""

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from lra.tasks.store import Pairs


class LabeledPair(NamedTuple):
    """Two texts, as bytes, and the class of the pair."""

    label: int
    first: bytes
    second: bytes


class DocumentFile:
    """Texts in a file, one after the other, numbered in the order of their first occurrence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._numbers: dict[bytes, int] = {}
        self._bounds = array("q", [0])

    def number_of(self, text: bytes) -> int:
        """The number of a text; it is written if it is new."""
        digest = hashlib.blake2b(text, digest_size=16).digest()
        number = self._numbers.setdefault(digest, len(self._numbers))
        if number == len(self._bounds) - 1:
            self._file.write(text)
            self._bounds.append(self._bounds[-1] + len(text))
        return number

    def close(self) -> tuple[UInt8[np.ndarray, " tokens"], Int64[np.ndarray, " bounds"]]:
        """All texts, mapped from the file, and their bounds."""
        self._file.close()
        tokens = np.memmap(self.path, np.uint8, mode="r") if self._bounds[-1] else np.empty(0)
        return np.asarray(tokens, dtype=np.uint8), np.array(self._bounds, dtype=np.int64)


def collect_pairs(splits: Mapping[str, Iterable[LabeledPair]], path: Path) -> dict[str, Pairs]:
    """The pairs of each split, read one by one; their texts lie in a file at `path`.

    The file may be removed while the result is in use.
    """
    documents = DocumentFile(path)
    pairs, labels = (
        {split: array("i") for split in splits},
        {split: bytearray() for split in splits},
    )
    for split, examples in splits.items():
        for label, first, second in examples:
            pairs[split].extend((documents.number_of(first), documents.number_of(second)))
            labels[split].append(label)
    tokens, offsets = documents.close()
    return {
        split: Pairs(
            tokens=tokens,
            offsets=offsets,
            pairs=np.array(pairs[split], dtype=np.int32).reshape(-1, 2),
            labels=np.array(labels[split], dtype=np.uint8),
        )
        for split in splits
    }
