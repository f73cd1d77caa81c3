"""Pathfinder: does a dashed contour join two markers, told pixel by pixel; 2 classes.

Linsley et al., "Learning long-range spatial dependencies with horizontal gated recurrent units",
NeurIPS 2018, in the form of Tay et al., "Long Range Arena", ICLR 2021, Section 2.2.5: 200,000
images of side 32, hard. With side 128 it is their Path-X.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from lra.tasks.base import Split
from lra.tasks.durable import scratch_directory
from lra.tasks.pathfinder_release import Release, find_release, read_images
from lra.tasks.pathfinder_tables import GENERATOR_VERSION, PARAMETERS
from lra.tasks.pixels import VOCAB_SIZE, PixelExamples, ZeroPixel
from lra.tasks.preparation import open_prepared, prepare_once
from lra.tasks.store import Sequences, Store

Difficulty = Literal["easy", "intermediate", "hard"]

CONTOUR_LENGTHS: dict[str, int] = {"easy": 6, "intermediate": 9, "hard": 14}
"""Paddles in a target contour."""

OFFICIAL_COUNT = 200_000
"""Images of a resolution and difficulty that the metadata list."""

RELEASE_RULE = "80, 10 and 10 % of the listed images in TFDS order; empty files then left out"
GENERATED_RULE = "images by their number: first train, then val, then test"

_RECOMPUTED = "by the formula documented for hard; the number in the release is not known"
DISTRACTORS = {"easy": _RECOMPUTED, "intermediate": _RECOMPUTED, "hard": "as documented"}
"""Where their number comes from."""


class Pathfinder:
    """Prepared images of one resolution and difficulty."""

    num_classes = 2
    num_sequences = 1
    vocab_size = VOCAB_SIZE
    val_is_test = False

    def __init__(
        self,
        *,
        name: str,
        data_dir: str,
        verify: bool,
        resolution: int,
        difficulty: Difficulty,
        zero_pixel: ZeroPixel,
    ) -> None:
        check(resolution, difficulty)
        self.max_seq_len = resolution**2
        self.zero_pixel = zero_pixel
        overrides = f"task=pathfinder resolution={resolution} difficulty={difficulty}"
        self.store = open_prepared(Path(data_dir), name, verify=verify, overrides=overrides)
        self.source_kind = self.store.manifest["source"]["kind"]
        self.source_name = self.store.manifest["source"].get("name")
        self.fingerprint = self.store.fingerprint

    def examples(self, split: Split) -> PixelExamples:
        """The examples of a split."""
        return PixelExamples(self.store.split(split), self.zero_pixel)


def check(resolution: int, difficulty: str) -> None:
    """Raise `ValueError` for images that Pathfinder does not have."""
    if resolution not in PARAMETERS:
        raise ValueError(f"resolution={resolution} is not one of {', '.join(map(str, PARAMETERS))}")
    if difficulty not in CONTOUR_LENGTHS:
        raise ValueError(f"difficulty={difficulty} is not one of {', '.join(CONTOUR_LENGTHS)}")


def prepare(
    *,
    name: str,
    data_dir: str,
    resolution: int,
    difficulty: Difficulty,
    source: str | None,
    stand_in: str | None,
    num_examples: Mapping[str, int],
    seed: int,
    num_workers: int,
    progress: Callable[[int], object],
) -> Store:
    """Prepare the splits in `data_dir/name`, unless exactly these data are there already.

    They are generated; or read from `source`, a directory or tar archive with the release's images
    and metadata at any depth, which raises `ValueError` for another number of images than the
    official one, unless the data get a name, `stand_in`. `progress` is told the images gained.
    """
    check(resolution, difficulty)
    root = Path(data_dir)
    origin: dict[str, object] = {"resolution": resolution, "difficulty": difficulty}
    if source is not None:
        release = find_release(Path(source), resolution, difficulty)
        origin |= describe_release(release, stand_in)
        build = partial(_read_splits, release, root / name, resolution, progress)
        return prepare_once(root, name, origin, build)
    if stand_in is not None:
        raise ValueError(f"stand_in={stand_in} needs prepare.source=PATH")
    origin |= {
        "kind": "regenerated",
        "generator": "lra.tasks.pathfinder_generator",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "distractors": DISTRACTORS[difficulty],
        "splits": GENERATED_RULE,
        "num_examples": dict(num_examples),
    }
    settings = (resolution, CONTOUR_LENGTHS[difficulty], num_examples, seed, num_workers, progress)
    return prepare_once(root, name, origin, partial(_generate_splits, root / name, *settings))


def describe_release(release: Release, stand_in: str | None) -> dict[str, object]:
    """What the manifest says of a source; `ValueError` for another number of images, unnamed."""
    if stand_in is None and len(release.rows) != OFFICIAL_COUNT:
        raise ValueError(
            f"{release.source} lists {len(release.rows):,} images, the official data "
            f"{OFFICIAL_COUNT:,}; name other data with prepare.stand_in=NAME"
        )
    label = {"kind": "official"} if stand_in is None else {"kind": "stand-in", "name": stand_in}
    return {
        **label,
        "metadata_sha256": release.metadata_sha256,
        "splits": RELEASE_RULE,
        "images_listed": len(release.rows),
        "images_empty": len(release.empty),
    }


def _generate_splits(
    directory: Path,
    resolution: int,
    contour_length: int,
    num_examples: Mapping[str, int],
    seed: int,
    num_workers: int,
    progress: Callable[[int], object],
) -> dict[str, Sequences]:
    from lra.tasks.pathfinder_generator import generate  # numba: an extra, and a second to import

    images = _new_images(directory, sum(num_examples.values()), resolution)
    _, labels = generate(
        resolution,
        contour_length,
        seed=seed,
        first=0,
        num_images=len(images),
        num_workers=num_workers,
        progress=progress,
        out=images,
    )
    return _cut(images, labels, num_examples)


def _read_splits(
    release: Release, directory: Path, resolution: int, progress: Callable[[int], object]
) -> dict[str, Sequences]:
    """Cut the listed images into splits, and only then leave out the empty ones."""
    tenth = len(release.rows) // 10
    bounds = {"train": (0, 8 * tenth), "val": (8 * tenth, 9 * tenth), "test": (9 * tenth, None)}
    splits = {
        split: [row for row in release.rows[start:end] if row.path not in release.empty]
        for split, (start, end) in bounds.items()
    }
    rows = [row for split in splits.values() for row in split]
    images = _new_images(directory, len(rows), resolution)
    for gained in read_images(release, rows, images):
        progress(gained)
    labels = np.array([row.label for row in rows], dtype=np.uint8)
    return _cut(images, labels, {split: len(kept) for split, kept in splits.items()})


def _new_images(directory: Path, count: int, resolution: int) -> UInt8[np.ndarray, "n r r"]:
    """Room for images, which can be more than fits into memory: in a file without a name."""
    with scratch_directory(directory) as scratch, (scratch / "images").open("w+b") as file:
        # here, not while writing to the map, is where a full disk can be told
        os.posix_fallocate(file.fileno(), 0, count * resolution**2)
        images = np.memmap(file, np.uint8, mode="r+", shape=(count, resolution, resolution))
    return np.asarray(images)


def _cut(
    images: UInt8[np.ndarray, "n r r"], labels: UInt8[np.ndarray, " n"], sizes: Mapping[str, int]
) -> dict[str, Sequences]:
    """Consecutive images as sequences of pixels, row by row."""
    splits, start = {}, 0
    for split, size in sizes.items():
        pixels = images[start : start + size].reshape(-1)
        offsets = np.arange(size + 1, dtype=np.int64) * images[0].size
        splits[split] = Sequences(pixels, offsets, labels[start : start + size])
        start += size
    return splits
