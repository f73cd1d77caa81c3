"""The Large Movie Review Dataset: its reviews, and how they are divided into splits.

Maas et al., "Learning Word Vectors for Sentiment Analysis", ACL 2011.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from lra.tasks.published import Archive, Publication, contents
from lra.tasks.sources import Source, tfds_order, unofficial
from lra.tasks.store import Sequences

PUBLICATION = Publication(
    archives=(
        Archive(
            url="http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
            num_bytes=84_125_825,
            sha256="c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
        ),
    ),
    folders=("aclImdb",),
    members=re.compile(r"aclImdb/(train|test)/(neg|pos)/\d+_\d+\.txt"),
)
SPLITS = ("train", "test")
CLASSES = ("neg", "pos")
NUM_PER_CLASS = 12_500
NUM_TRAIN_BYTES = 33_132_823
VALIDATION_RULE = "per class, the texts with the smallest SHA-256 of seed in decimal digits + text"


@dataclass(frozen=True)
class Reviews:
    """A published split: texts without white space around them, in TFDS's order."""

    texts: list[bytes]
    labels: UInt8[np.ndarray, " n"]
    """The position in `CLASSES`."""

    def where(self, chosen: Bool[np.ndarray, " n"]) -> Sequences:
        """Some of the reviews, in the same order."""
        texts = [self.texts[i] for i in np.flatnonzero(chosen)]
        offsets = np.cumsum([0] + [len(text) for text in texts])
        return Sequences(np.frombuffer(b"".join(texts), np.uint8), offsets, self.labels[chosen])


def read_reviews(source: Source) -> dict[str, Reviews]:
    """Both published splits. Raises `ValueError` for data that are incomplete or not official."""
    if source.needs_tfds:
        from lra.tasks.tfds_without_tensorflow import read_directory, tfds_directory

        with tfds_directory(source, field="text", num_classes=2, read=_tfds_examples) as directory:
            splits = {
                split: _check_reviews(source.path, split, read_directory(directory, split, "text"))
                for split in SPLITS
            }
    else:
        splits = {
            split: Reviews(*map(list, zip(*(named[key] for key in tfds_order(named, split)))))
            for split, named in _read_members(source.path).items()
        }
    if source.stand_in is None:
        _check_official(source, splits)
    return splits


def validation_rows(reviews: Reviews, fraction: float, seed: int) -> Bool[np.ndarray, " n"]:
    """True at the reviews of the validation split, `fraction` of each class.

    `VALIDATION_RULE` looks at the text alone, so that copies of a text stay together.
    """
    ranks = [hashlib.sha256(b"%d" % seed + text).digest() for text in reviews.texts]
    chosen = np.zeros(len(ranks), dtype=bool)
    for label in range(len(CLASSES)):
        rows = sorted(np.flatnonzero(reviews.labels == label), key=lambda row: ranks[row])
        chosen[rows[: round(fraction * len(rows))]] = True
    return chosen


def _read_members(path: Path) -> dict[str, dict[str, tuple[bytes, int]]]:
    """Text and label of each labeled review, by split and by the key it has in TFDS."""
    found: dict[str, dict[str, tuple[bytes, int]]] = {split: {} for split in SPLITS}
    for name, content in contents(path, PUBLICATION):
        _, split, folder, _ = name.split("/")
        found[split][name] = (content.strip(), CLASSES.index(folder))
    return found


def _tfds_examples(path: Path) -> dict[str, Iterator[tuple[str, dict[str, object]]]]:
    return {
        split: ((key, {"text": text, "label": label}) for key, (text, label) in named.items())
        for split, named in _read_members(path).items()
    }


def _check_reviews(source: Source, split: str, reviews: Iterable[tuple[bytes, int]]) -> Reviews:
    texts: list[bytes] = []
    labels: list[int] = []
    for text, label in reviews:
        if not text:
            raise ValueError(f"review {len(texts)} of {split} in {source.path} is empty")
        if label not in range(len(CLASSES)):
            raise ValueError(f"{split} in {source.path} has label {label}, not 0 or 1")
        texts.append(text)
        labels.append(label)
    if set(labels) != set(range(len(CLASSES))):
        raise ValueError(f"{split} in {source.path} lacks reviews of neg, pos or both")
    return Reviews(texts, np.array(labels, dtype=np.uint8))


def _check_official(source: Source, splits: dict[str, Reviews]) -> None:
    """Counts and the size of the training texts, where no checksum of an archive is known."""
    for split, reviews in splits.items():
        counts = np.bincount(reviews.labels).tolist()
        if counts != [NUM_PER_CLASS, NUM_PER_CLASS]:
            raise unofficial(source, f"{counts} reviews in {split}", f"{NUM_PER_CLASS:,} a class")
    if (found := sum(map(len, splits["train"].texts))) != NUM_TRAIN_BYTES:
        raise unofficial(source, f"{found:,} bytes of text in train", f"{NUM_TRAIN_BYTES:,}")
