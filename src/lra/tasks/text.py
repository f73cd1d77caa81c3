"""Text: is a movie review positive, read byte by byte; 2 classes.

Maas et al., "Learning Word Vectors for Sentiment Analysis", ACL 2011, in the form of Tay et al.,
"Long Range Arena", ICLR 2021, Section 2.2.2.

The store holds raw bytes in three splits: `val` is a tenth of the published training split, `train`
the rest of it, `test` the published test split. Published runs train on `train` and `val` together
and validate on `test`; one store serves both.
"""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8

from lra.tasks.aclimdb import (
    CLASSES,
    NUM_PER_CLASS,
    PUBLICATION,
    VALIDATION_RULE,
    Review,
    read_reviews,
    validation_rows,
)
from lra.tasks.base import Batch, Split, pad
from lra.tasks.copies import CUT, REVIEW_LAYOUTS, is_copy, read_copied_reviews
from lra.tasks.preparation import open_prepared
from lra.tasks.release import prepare_release
from lra.tasks.sources import Source, Via, prepare_from_source
from lra.tasks.store import Sequences, Store


class Text:
    """Prepared reviews. `validation="test"` validates on the test split, as published runs do."""

    num_classes = len(CLASSES)
    num_sequences = 1
    vocab_size = 257  # padding and 256 bytes

    def __init__(
        self,
        *,
        name: str,
        data_dir: str,
        verify: bool,
        max_tokens: int,
        max_seq_len: int,
        validation: Literal["train_split", "test"],
    ) -> None:
        if validation not in ("train_split", "test"):
            raise ValueError(f"protocol.text_val={validation} is not one of train_split, test")
        if not 1 <= max_tokens <= max_seq_len:
            raise ValueError(f"max_tokens={max_tokens} is not in 1..max_seq_len={max_seq_len}")
        self.max_tokens = max_tokens
        self.max_seq_len = max_seq_len
        self.val_is_test = validation == "test"
        self.store = open_prepared(Path(data_dir), name, verify=verify)
        self.source_kind = self.store.manifest["source"]["kind"]
        self.source_name = self.store.manifest["source"].get("name")
        self.fingerprint = self.store.fingerprint

    def examples(self, split: Split) -> "TextExamples":
        """The examples of a split."""
        stored = {"train": ["train"], "val": ["val"], "test": ["test"]}
        if self.val_is_test:
            stored |= {"train": ["train", "val"], "val": ["test"]}
        parts = [self.store.split(name) for name in stored[split]]
        return TextExamples(parts, self.max_tokens, self.max_seq_len)


class TextExamples:
    """Reviews of one or more stored splits, one after the other."""

    def __init__(self, parts: list[Sequences], max_tokens: int, max_seq_len: int) -> None:
        self.parts = parts
        self.starts = np.cumsum([0] + [len(part) for part in parts])
        self.max_tokens = max_tokens
        self.max_seq_len = max_seq_len

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """1 for a positive review."""
        return np.concatenate([part.labels for part in self.parts]).astype(np.int64)

    def batch(self, indices: Int[np.ndarray, " b"]) -> Batch:
        """Reviews, cut to `max_tokens` and padded; the token of byte x is x + 1."""
        tokens, mask = pad([self._review(i) for i in indices], self.max_seq_len)
        return Batch(tokens + mask, mask, torch.from_numpy(self.labels[indices]))

    def _review(self, index: int | np.integer) -> UInt8[np.ndarray, "_"]:
        number = np.searchsorted(self.starts, index, side="right") - 1
        part, row = self.parts[number], index - self.starts[number]
        return part.tokens[part.offsets[row] : part.offsets[row + 1]][: self.max_tokens]


def prepare(
    *,
    name: str,
    data_dir: str,
    source: str | None,
    stand_in: str | None,
    via: Via,
    val_fraction: float,
    seed: int,
    progress: Callable[[int], object],
) -> Store:
    """Prepare the splits in `data_dir/name`, unless they are there already.

    `source` is `aclImdb_v1.tar.gz`, the directory it was unpacked to, or a directory of TensorFlow
    Datasets; None takes the archive from `data_dir/downloads`, or downloads it. Or it is an archive
    or directory that holds copies, at any depth: the `imdb-4000` of Mega's `lra.zip`, or the
    pickles `lra-text.*`. Data that are not the official ones raise `ValueError` unless they get a
    name, `stand_in`. `via` is how an archive is read; the result is the same. `progress` is told
    the bytes of a download.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} is not between 0 and 1")
    if source is not None and is_copy(source, REVIEW_LAYOUTS, PUBLICATION, via):
        return _prepare_copy(Path(data_dir), name, Path(source), stand_in, val_fraction, seed)
    return prepare_from_source(
        Path(data_dir),
        name,
        source=source,
        stand_in=stand_in,
        via=via,
        publication=PUBLICATION,
        rule={"validation": {"rule": VALIDATION_RULE, "fraction": val_fraction, "seed": seed}},
        build=partial(_build, val_fraction=val_fraction, seed=seed),
        progress=progress,
    )


def _prepare_copy(
    data_dir: Path,
    name: str,
    source: Path,
    stand_in: str | None,
    val_fraction: float,
    seed: int,
) -> Store:
    official = stand_in is None
    num_val = len(CLASSES) * round(val_fraction * NUM_PER_CLASS)
    total = len(CLASSES) * NUM_PER_CLASS
    rule = {"rule": VALIDATION_RULE, "fraction": val_fraction, "seed": seed, "texts": CUT}
    return prepare_release(
        data_dir,
        name,
        source=source,
        stand_in=stand_in,
        layouts=REVIEW_LAYOUTS,
        official_counts={"train": total - num_val, "val": num_val, "test": total},
        build=partial(_build_copy, official=official, val_fraction=val_fraction, seed=seed),
        rule={"validation": rule},
    )


def _build(source: Source, val_fraction: float, seed: int) -> dict[str, Sequences]:
    return _split(read_reviews(source), val_fraction, seed)


def _build_copy(
    layout: str, files: dict[str, Path], _: Path, official: bool, val_fraction: float, seed: int
) -> dict[str, Sequences]:
    return _split(read_copied_reviews(layout, files, official=official), val_fraction, seed)


def _split(
    reviews: dict[str, list[Review]], val_fraction: float, seed: int
) -> dict[str, Sequences]:
    train, test = reviews["train"], reviews["test"]
    is_val = validation_rows(train, val_fraction, seed)
    return {
        "train": Sequences.of(review for review, val in zip(train, is_val, strict=True) if not val),
        "val": Sequences.of(review for review, val in zip(train, is_val, strict=True) if val),
        "test": Sequences.of(test),
    }
