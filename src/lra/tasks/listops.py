"""ListOps: evaluate a nested prefix expression over digits; 10 classes.

Nangia & Bowman, "ListOps: A Diagnostic Dataset for Latent Tree Learning", 2018, in the long form
of Tay et al., "Long Range Arena", ICLR 2021, Section 2.2.1.
"""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int

from lra.tasks.base import Batch, Split, pad
from lra.tasks.listops_generator import GENERATOR_VERSION, VOCAB, ListOpsRule, generate
from lra.tasks.listops_release import LAYOUTS, OFFICIAL_COUNTS, read_split
from lra.tasks.preparation import open_prepared, prepare_once
from lra.tasks.release import prepare_release
from lra.tasks.store import Sequences, Store

SPLIT_KEYS: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
CLOSING_BRACKET = VOCAB.index("]")


class ListOps:
    """Prepared ListOps data.

    `brackets="drop"` removes closing brackets, as the paper's release does: its trees are
    ambiguous.
    """

    num_classes = 10
    num_sequences = 1
    vocab_size = len(VOCAB)
    val_is_test = False

    def __init__(
        self,
        *,
        name: str,
        data_dir: str,
        verify: bool,
        max_seq_len: int,
        brackets: Literal["keep", "drop"],
    ) -> None:
        if brackets not in ("keep", "drop"):
            raise ValueError(f"protocol.listops_brackets={brackets} is not one of keep, drop")
        self.max_seq_len = max_seq_len
        self.brackets = brackets
        self.store = open_prepared(Path(data_dir), name, verify=verify)
        self.source_kind = self.store.manifest["source"]["kind"]
        self.source_name = self.store.manifest["source"].get("name")
        self.fingerprint = self.store.fingerprint

    def examples(self, split: Split) -> "ListOpsExamples":
        """The examples of a split."""
        return ListOpsExamples(self.store.split(split), self.max_seq_len, self.brackets)


class ListOpsExamples:
    """One split of ListOps."""

    def __init__(
        self, sequences: Sequences, max_seq_len: int, brackets: Literal["keep", "drop"]
    ) -> None:
        self.sequences = sequences
        self.max_seq_len = max_seq_len
        self.brackets = brackets

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The value of each expression."""
        return self.sequences.labels.astype(np.int64)

    def batch(self, indices: Int[np.ndarray, " b"]) -> Batch:
        """Expressions, padded."""
        starts, ends = self.sequences.offsets[indices], self.sequences.offsets[indices + 1]
        tokens = [self.sequences.tokens[a:b] for a, b in zip(starts, ends, strict=True)]
        if self.brackets == "drop":
            tokens = [t[t != CLOSING_BRACKET] for t in tokens]
        padded, mask = pad(tokens, self.max_seq_len)
        return Batch(padded, mask, torch.from_numpy(self.labels[indices]))


def prepare(
    *,
    name: str,
    data_dir: str,
    rule: ListOpsRule,
    num_examples: Mapping[Split, int],
    seed: int,
    num_workers: int,
    progress: Callable[[int], object],
    source: str | None = None,
    stand_in: str | None = None,
) -> Store:
    """Prepare the splits in `data_dir/name`, unless exactly these data are there already.

    They are generated, or read from `source`: an archive or a directory that holds the release's
    `basic_*.tsv`, or the `listops` of Mega's `lra.zip`, at any depth. Damaged data are prepared
    again. Raises `ValueError` where other data have that place.
    """
    if source is not None:
        return prepare_release(
            Path(data_dir),
            name,
            source=Path(source),
            stand_in=stand_in,
            layouts=LAYOUTS,
            official_counts=OFFICIAL_COUNTS,
            build=_read_splits,
        )
    if stand_in is not None:
        raise ValueError(f"stand_in={stand_in} needs prepare.source=PATH")
    origin = {
        "kind": "regenerated",
        "generator": "lra.tasks.listops_generator",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "rule": vars(rule),
        "num_examples": dict(num_examples),
    }

    build = partial(_generate_splits, rule, num_examples, seed, num_workers, progress)
    return prepare_once(Path(data_dir), name, origin, build)


def _generate_splits(
    rule: ListOpsRule,
    num_examples: Mapping[Split, int],
    seed: int,
    num_workers: int,
    progress: Callable[[int], object],
) -> dict[str, Sequences]:
    return {
        split: generate(
            rule,
            seed=seed,
            split=SPLIT_KEYS[split],
            num_examples=count,
            num_workers=num_workers,
            progress=progress,
        )
        for split, count in num_examples.items()
    }


def _read_splits(layout: str, files: dict[str, Path], _: Path) -> dict[str, Sequences]:
    return {split: read_split(layout, files, key) for split, key in SPLIT_KEYS.items()}
