"""Retrieval: does one paper cite the other, told from their bytes; 2 classes.

Radev et al., "The ACL Anthology Network Corpus", 2013, in the form of Tay et al., "Long Range
Arena", ICLR 2021, Section 2.2.3: pairs of papers, half of which are cited.

Each document is stored once, whole; a split holds the numbers of the two documents of a pair. The
release's files have a pair a line, `label id1 id2 text1 text2` between tabs, without any quoting.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from lra.tasks import mega, pickles
from lra.tasks.base import Batch, Split, pad
from lra.tasks.documents import LabeledPair, collect_pairs
from lra.tasks.download import fetch
from lra.tasks.durable import build_lock
from lra.tasks.preparation import is_prepared, open_prepared
from lra.tasks.release import prepare_release
from lra.tasks.store import Pairs, Store

CLASSES = (0.0, 1.0)
"""Not cited and cited, as the release writes them."""

OFFICIAL_COUNTS = {"train": 147_086, "val": 18_090, "test": 17_437}
LAYOUTS = {
    "release": [f"new_aan_pairs.{split}.tsv" for split in ("train", "eval", "test")],
    "mega": [
        *(f"aan/{part}-bin/dict.txt" for part in ("src", "label")),
        *(
            f"aan/{part}-bin/{split}.{kind}"
            for part in ("src", "src1", "label")
            for split in ("train", "valid", "test")
            for kind in ("idx", "bin")
        ),
    ],
    "pickles": [f"lra-retrieval.{split}.pickle" for split in ("train", "dev", "test")],
}


class Retrieval:
    """Prepared pairs of documents."""

    num_classes = 2
    num_sequences = 2
    vocab_size = 257  # padding, and 256 bytes
    val_is_test = False

    def __init__(
        self, *, name: str, data_dir: str, verify: bool, max_tokens: int, max_seq_len: int
    ) -> None:
        if not 1 <= max_tokens <= max_seq_len:
            raise ValueError(f"max_tokens={max_tokens} is not in 1..max_seq_len={max_seq_len}")
        self.max_tokens = max_tokens
        self.max_seq_len = max_seq_len
        self.store = open_prepared(Path(data_dir), name, verify=verify)
        self.source_kind = self.store.manifest["source"]["kind"]
        self.source_name = self.store.manifest["source"].get("name")
        self.fingerprint = self.store.fingerprint

    def examples(self, split: Split) -> "RetrievalExamples":
        """The examples of a split."""
        return RetrievalExamples(self.store.pairs(split), self.max_tokens, self.max_seq_len)


class RetrievalExamples:
    """One split of Retrieval."""

    def __init__(self, documents: Pairs, max_tokens: int, max_seq_len: int) -> None:
        self.documents = documents
        self.max_tokens = max_tokens
        self.max_seq_len = max_seq_len

    def __len__(self) -> int:
        return len(self.documents)

    @cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """1 where one document cites the other."""
        return self.documents.labels.astype(np.int64)

    def batch(self, indices: Int[np.ndarray, " b"]) -> Batch:
        """Pairs, each document cut to `max_tokens` and padded; the token of byte x is x + 1."""
        numbers = self.documents.pairs[indices].ravel()
        starts, ends = self.documents.offsets[numbers], self.documents.offsets[numbers + 1]
        ends = np.minimum(ends, starts + self.max_tokens)
        texts = [self.documents.tokens[a:b] for a, b in zip(starts, ends, strict=True)]
        tokens, mask = pad(texts, self.max_seq_len)  # 2b 1 n
        tokens += mask
        shape = (len(indices), 2, self.max_seq_len)
        labels = torch.from_numpy(self.labels[indices])
        return Batch(tokens.reshape(shape), mask.reshape(shape), labels)


def prepare(
    *,
    name: str,
    data_dir: str,
    source: str | None,
    stand_in: str | None,
    url: str,
    progress: Callable[[int], object],
) -> Store:
    """Prepare the splits in `data_dir/name`, unless exactly these data are there already.

    `source` is an archive or a directory that holds the release's `new_aan_pairs.*.tsv`, the `aan`
    of Mega's `lra.zip`, or the pickles `lra-retrieval.*`, at any depth. None takes the archive from
    `data_dir/downloads`, or downloads it; `progress` is told the bytes as they arrive.
    """
    root = Path(data_dir)
    if source is None:
        if stand_in is not None:
            raise ValueError(f"stand_in={stand_in} needs prepare.source=PATH")
        if is_prepared(root, name, {"kind": "official"}):
            return open_prepared(root, name, verify=False)
        found = root / "downloads" / url.rpartition("/")[2]
        with build_lock(found):
            fetch(url, found, progress)
    else:
        found = Path(source)
    return prepare_release(
        root,
        name,
        source=found,
        stand_in=stand_in,
        layouts=LAYOUTS,
        official_counts=OFFICIAL_COUNTS,
        build=_collect,
    )


def _collect(layout: str, files: dict[str, Path], scratch: Path) -> dict[str, Pairs]:
    return collect_pairs(read_splits(layout, list(files.values())), scratch / "documents")


def read_splits(layout: str, files: list[Path]) -> dict[str, Iterator[LabeledPair]]:
    """The pairs of each split, given one of `LAYOUTS` and its files in that order."""
    if layout == "mega":
        directory = files[0].parents[1]
        pairs = [mega.read_pairs(directory, split) for split in mega.SPLITS]
    else:
        read = read_tsv if layout == "release" else pickles.read_pickle_pairs
        pairs = [read(path) for path in files]
    return dict(zip(OFFICIAL_COUNTS, pairs, strict=True))


def read_tsv(path: Path) -> Iterator[LabeledPair]:
    """The pairs in a file of the release. Raises `ValueError` that names the first bad line."""
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, start=1):
            fields = line.removesuffix(b"\n").removesuffix(b"\r").split(b"\t")
            if len(fields) != 5:
                raise ValueError(f"{path}, line {number}: {len(fields)} columns, expected 5")
            label, _, _, first, second = fields
            try:
                yield LabeledPair(CLASSES.index(float(label)), first, second)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: label {label!r} is not 0 or 1") from error
