"""The Large Movie Review Dataset: its reviews, and how they are divided into splits.

Maas et al., "Learning Word Vectors for Sentiment Analysis", ACL 2011.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from lra.tasks.published import Archive, Publication, contents
from lra.tasks.sources import Source, tfds_order, unofficial

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


Review = tuple[bytes, int]
"""A text without white space around it, and the position of its class in `CLASSES`."""


def read_reviews(source: Source) -> dict[str, list[Review]]:
    """The published splits, in the order of TensorFlow Datasets.

    Raises `ValueError` for data that are damaged, incomplete, or official only by name.
    """
    if source.needs_tfds:
        from lra.tasks.tfds_without_tensorflow import read_directory, tfds_directory

        with tfds_directory(source, field="text", num_classes=2, read=_tfds_examples) as directory:
            splits = {split: list(read_directory(directory, split, "text")) for split in SPLITS}
    else:
        found = _read_members(source.path)
        splits = {s: [named[key] for key in tfds_order(named, s)] for s, named in found.items()}
    for split, reviews in splits.items():
        check_reviews(source.path, split, reviews)
    if source.stand_in is None:
        _check_official(source, splits)
    return splits


def validation_rows(reviews: list[Review], fraction: float, seed: int) -> Bool[np.ndarray, " n"]:
    """True at the reviews of the validation split, `fraction` of each class.

    `VALIDATION_RULE` looks at the text alone, so that copies of a text stay together.
    """
    ranks = [hashlib.sha256(b"%d" % seed + text).digest() for text, _ in reviews]
    chosen = np.zeros(len(reviews), dtype=bool)
    for wanted in range(len(CLASSES)):
        rows = [row for row, (_, label) in enumerate(reviews) if label == wanted]
        rows.sort(key=ranks.__getitem__)
        chosen[rows[: round(fraction * len(rows))]] = True
    return chosen


def _read_members(path: Path) -> dict[str, dict[str, Review]]:
    """The labeled reviews of each split, by the key that they have in TensorFlow Datasets."""
    found: dict[str, dict[str, Review]] = {split: {} for split in SPLITS}
    for name, content in contents(path, PUBLICATION):
        _, split, folder, _ = name.split("/")
        found[split][name] = (content.strip(), CLASSES.index(folder))
    return found


def _tfds_examples(path: Path) -> dict[str, Iterator[tuple[str, dict[str, object]]]]:
    found = _read_members(path)
    for split, named in found.items():
        check_reviews(path, split, named.values())  # TFDS has no message for an empty split
    return {
        split: ((key, {"text": text, "label": label}) for key, (text, label) in named.items())
        for split, named in found.items()
    }


def check_reviews(path: Path, split: str, reviews: Iterable[Review]) -> None:
    """Raise `ValueError` for a review without text, and unless both classes are there."""
    labels = set()
    for row, (text, label) in enumerate(reviews):
        if not text:
            raise ValueError(f"review {row} of {split} in {path} is empty")
        labels.add(label)
    if labels != set(range(len(CLASSES))):
        raise ValueError(f"{split} in {path} has labels {sorted(labels)}, not 0 and 1")


def _check_official(source: Source, splits: dict[str, list[Review]]) -> None:
    """Counts and the size of the training texts, where no checksum of an archive is known."""
    for split, reviews in splits.items():
        counts = np.bincount([label for _, label in reviews]).tolist()
        if counts != [NUM_PER_CLASS, NUM_PER_CLASS]:
            raise unofficial(source, f"{counts} reviews in {split}", f"{NUM_PER_CLASS:,} a class")
    if (found := sum(len(text) for text, _ in splits["train"])) != NUM_TRAIN_BYTES:
        raise unofficial(source, f"{found:,} bytes of text in train", f"{NUM_TRAIN_BYTES:,}")
