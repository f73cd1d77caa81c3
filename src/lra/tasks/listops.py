"""ListOps: evaluate a nested prefix expression over digits; 10 classes.

Nangia & Bowman, "ListOps: A Diagnostic Dataset for Latent Tree Learning", 2018, in the long form
of Tay et al., "Long Range Arena", ICLR 2021, Section 2.2.1.
"""

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int

from lra.tasks.base import Batch, Split, pad
from lra.tasks.listops_generator import CLOSING_BRACKET, VOCAB
from lra.tasks.preparation import open_prepared
from lra.tasks.store import Sequences


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
