"""Image: what does a gray picture show, read pixel by pixel; 10 classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009 (CIFAR-10), in the form of
Tay et al., "Long Range Arena", ICLR 2021, Section 2.2.4.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lra.tasks.base import Split
from lra.tasks.cifar10 import NUM_CLASSES, NUM_PIXELS, PUBLICATION, Records, gray, read_records
from lra.tasks.copies import (
    GRAY,
    IMAGE_SPLIT_RULE,
    image_layouts,
    is_copy,
    read_copied_images,
)
from lra.tasks.pixels import VOCAB_SIZE, PixelExamples, ZeroPixel
from lra.tasks.preparation import open_prepared
from lra.tasks.release import prepare_release
from lra.tasks.sources import Source, Via, prepare_from_source, tfds_order
from lra.tasks.store import Sequences, Store

CHUNK = 5_000
OFFICIAL_COUNTS = {"train": 45_000, "val": 5_000, "test": 10_000}
LAYOUTS = image_layouts("lra-image", "cifar10")
"""How copies that other projects pass on lie."""

SPLIT_RULE = "train and val are the first 90 % and the last 10 % of train in TFDS's order"


class Image:
    """Prepared images. `zero_pixel="padding"` masks black pixels, as published runs do."""

    num_classes = NUM_CLASSES
    num_sequences = 1
    vocab_size = VOCAB_SIZE
    max_seq_len = NUM_PIXELS
    val_is_test = False

    def __init__(self, *, name: str, data_dir: str, verify: bool, zero_pixel: ZeroPixel) -> None:
        self.zero_pixel = zero_pixel
        self.store = open_prepared(Path(data_dir), name, verify=verify)
        self.source_kind = self.store.manifest["source"]["kind"]
        self.source_name = self.store.manifest["source"].get("name")
        self.fingerprint = self.store.fingerprint

    def examples(self, split: Split) -> PixelExamples:
        """The examples of a split."""
        return PixelExamples(self.store.split(split), self.zero_pixel)


def prepare(
    *,
    name: str,
    data_dir: str,
    source: str | None,
    stand_in: str | None,
    via: Via,
    progress: Callable[[int], object],
) -> Store:
    """Prepare the splits in `data_dir/name`, unless they are there already.

    `source` is CIFAR-10's binary or Python archive, the directory it was unpacked to, or a
    directory of TensorFlow Datasets; None takes the binary archive from `data_dir/downloads`, or
    downloads it. Or it is an archive or directory that holds copies, at any depth: the `cifar10` of
    Mega's `lra.zip`, or the pickles `lra-image.*`, which have their own splits. Data that are not
    the official ones raise `ValueError` unless they get a name, `stand_in`. `via` is how an archive
    is read; the result is the same. `progress` is told the bytes of a download.
    """
    if source is not None and is_copy(source, LAYOUTS, PUBLICATION, via):
        return prepare_release(
            Path(data_dir),
            name,
            source=Path(source),
            stand_in=stand_in,
            layouts=LAYOUTS,
            official_counts=OFFICIAL_COUNTS,
            build=partial(read_copied_images, num_pixels=NUM_PIXELS, num_classes=NUM_CLASSES),
            rule={"gray": GRAY, "validation": {"rule": IMAGE_SPLIT_RULE}},
        )
    return prepare_from_source(
        Path(data_dir),
        name,
        source=source,
        stand_in=stand_in,
        via=via,
        publication=PUBLICATION,
        rule={"validation": {"rule": SPLIT_RULE}},
        build=_build,
        progress=progress,
    )


def _build(source: Source) -> dict[str, Sequences]:
    records = read_records(source)
    train = tfds_order(range(len(records["train"])), "train")
    test = tfds_order(range(len(records["test"])), "test")
    num_val = len(train) // 10
    return {
        "train": _sequences(records["train"], train[:-num_val]),
        "val": _sequences(records["train"], train[-num_val:]),
        "test": _sequences(records["test"], test),
    }


def _sequences(records: Records, rows: list[int]) -> Sequences:
    """Gray values of some records."""
    pixels = np.empty((len(rows), NUM_PIXELS), dtype=np.uint8)
    for start in range(0, len(rows), CHUNK):
        planes = records[rows[start : start + CHUNK], 1:].reshape(-1, 3, NUM_PIXELS)
        pixels[start : start + CHUNK] = gray(*planes.transpose(1, 0, 2))
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * NUM_PIXELS
    return Sequences(pixels.ravel(), offsets, records[rows, 0])
