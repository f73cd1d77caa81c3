"""Pathfinder: does a dashed contour join two markers, told pixel by pixel; 2 classes.

Linsley et al., "Learning long-range spatial dependencies with horizontal gated recurrent units",
NeurIPS 2018, in the form of Tay et al., "Long Range Arena", ICLR 2021, Section 2.2.5: 200,000
images of side 32, hard. With side 128 it is their Path-X.
"""

import os
import re
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from lra.tasks.base import Split
from lra.tasks.copies import IMAGE_SPLIT_RULE, image_layouts, read_copied_images
from lra.tasks.durable import scratch_directory
from lra.tasks.pathfinder_release import DIRECTORIES, Release, find_release, read_images
from lra.tasks.pathfinder_tables import GENERATOR_VERSION, PARAMETERS
from lra.tasks.pixels import VOCAB_SIZE, PixelExamples, ZeroPixel
from lra.tasks.preparation import open_prepared, prepare_once
from lra.tasks.release import holds, prepare_release
from lra.tasks.store import Sequences, Store

Difficulty = Literal["easy", "intermediate", "hard"]

CONTOUR_LENGTHS: dict[str, int] = {"easy": 6, "intermediate": 9, "hard": 14}
"""Paddles in a target contour."""

OFFICIAL_COUNT = 200_000
"""Images of a resolution and difficulty that the metadata list."""

NUM_EMPTY = {(32, "easy"): 1}
"""Images of the release without content, which copies of it lack."""

MEGA_DIRECTORIES = {(32, "hard"): "pathfinder", (128, "hard"): "path-x"}

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

    They are generated; or read from `source`, a directory or archive that holds, at any depth, the
    release's images and metadata (not in a zip), or copies of them in splits of their own: Mega's
    `pathfinder` or `path-x`, or pickles. That raises `ValueError` for another number of images than
    the official one, unless the data get a name, `stand_in`. `progress` is told the images gained.
    """
    check(resolution, difficulty)
    root = Path(data_dir)
    if source is not None:
        return _prepare_source(root, name, Path(source), stand_in, resolution, difficulty, progress)
    if stand_in is not None:
        raise ValueError(f"stand_in={stand_in} needs prepare.source=PATH")
    origin = {
        "resolution": resolution,
        "difficulty": difficulty,
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


def _prepare_source(
    root: Path,
    name: str,
    source: Path,
    stand_in: str | None,
    resolution: int,
    difficulty: Difficulty,
    progress: Callable[[int], object],
) -> Store:
    """Prepare from the release or, where there is none of it, from copies."""
    origin: dict[str, object] = {"resolution": resolution, "difficulty": difficulty}
    directory = DIRECTORIES[difficulty]
    layouts = image_layouts(
        f"lra-pathfinder{resolution}-{directory}", MEGA_DIRECTORIES.get((resolution, difficulty))
    )
    released = re.compile(rf"(^|/)pathfinder{resolution}/{directory}/(imgs|metadata)/")
    if zipfile.is_zipfile(source) or holds(source, layouts, unless=released):
        num_train = OFFICIAL_COUNT * 8 // 10 - NUM_EMPTY.get((resolution, difficulty), 0)
        tenth = OFFICIAL_COUNT // 10
        return prepare_release(
            root,
            name,
            source=source,
            stand_in=stand_in,
            layouts=layouts,
            official_counts={"train": num_train, "val": tenth, "test": tenth},
            build=partial(read_copied_images, num_pixels=resolution**2, num_classes=2),
            rule=origin | {"splits": IMAGE_SPLIT_RULE},
        )
    release = find_release(source, resolution, difficulty)
    origin |= describe_release(release, stand_in)
    build = partial(_read_splits, release, root / name, resolution, progress)
    return prepare_once(root, name, origin, build)


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
