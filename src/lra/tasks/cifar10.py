"""CIFAR-10: its records as in the binary version, and TensorFlow's gray of their pixels.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from lra.tasks.pickles import load_data
from lra.tasks.published import Archive, Publication, contents
from lra.tasks.sources import Source, tfds_order, unofficial

PUBLICATION = Publication(
    archives=(
        Archive(
            url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            num_bytes=170_052_171,
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        Archive(
            url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            num_bytes=170_498_071,
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    ),
    folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
    members=re.compile(r"cifar-10-batches-(bin|py)/(data_batch_[1-5]|test_batch)(\.bin)?"),
)
NUM_CLASSES = 10
SIDE = 32
NUM_PIXELS = SIDE**2
RECORD_BYTES = 1 + 3 * NUM_PIXELS
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
BATCH_RECORDS = 10_000
BATCH_SHA1 = {
    "train": [
        "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "26e2849e66a845b7f1e4614ae70f4889ae604628",
    ],
    "test": ["67eb016db431130d61cd03c7ad570b013799c88c"],
}

Records = UInt8[np.ndarray, "n 3073"]
"""Label, then the red, the green and the blue plane, row by row."""


def read_records(source: Source) -> dict[str, Records]:
    """Both published splits in the order of their files.

    Raises `ValueError` for data that are incomplete, malformed or not official.
    """
    if source.needs_tfds:
        from lra.tasks.tfds_without_tensorflow import tfds_directory

        with tfds_directory(source, field="image", num_classes=10, read=_tfds_examples) as folder:
            splits = {split: _read_tfds(folder, split) for split in BATCHES}
    else:
        splits = _read_members(source.path)
    if source.stand_in is None:
        _check_official(source, splits)
    return splits


def gray(
    red: UInt8[np.ndarray, "*n"], green: UInt8[np.ndarray, "*n"], blue: UInt8[np.ndarray, "*n"]
) -> UInt8[np.ndarray, "*n"]:
    """`tf.image.rgb_to_grayscale` of uint8, to the bit: all in float32, truncated."""
    scale = np.float32(1 / 255)
    luma = red * scale * np.float32(0.2989)
    luma += green * scale * np.float32(0.5870)
    luma += blue * scale * np.float32(0.1140)
    return (luma * np.float32(255.5)).astype(np.uint8)


def _read_members(path: Path) -> dict[str, Records]:
    found = {}
    for name, content in contents(path, PUBLICATION):
        parse = _parse_binary if name.endswith(".bin") else _parse_pickle
        found[Path(name).stem] = parse(content, f"{name} in {path}")
    if missing := [name for names in BATCHES.values() for name in names if name not in found]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return {
        split: np.concatenate([found[name] for name in names]) for split, names in BATCHES.items()
    }


def _parse_binary(content: bytes, where: str) -> Records:
    if not content or len(content) % RECORD_BYTES:
        raise ValueError(f"{where} has {len(content):,} bytes, not records of {RECORD_BYTES:,}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD_BYTES)
    _check_labels(records[:, 0], where)
    return records


def _parse_pickle(content: bytes, where: str) -> Records:
    try:
        batch = load_data(io.BytesIO(content))
        if not isinstance(batch, dict):
            raise ValueError(f"it holds {type(batch).__name__}")
        labels, pixels = np.array(batch[b"labels"]), np.array(batch[b"data"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{where} is not a batch of CIFAR-10: {error}") from error
    if pixels.dtype != np.uint8 or pixels.shape != (labels.size, RECORD_BYTES - 1):
        raise ValueError(f"{where} has {labels.size} labels, pixels {pixels.dtype}{pixels.shape}")
    _check_labels(labels, where)
    return np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)


def _read_tfds(directory: Path, split: str) -> Records:
    from lra.tasks.tfds_without_tensorflow import decode_image, read_directory

    images, labels = zip(*read_directory(directory, split, "image"), strict=True)
    _check_labels(labels, f"{split} in {directory}")
    records = np.empty((len(labels), RECORD_BYTES), dtype=np.uint8)
    order = tfds_order(range(len(labels)), split)
    for row, image, label in zip(order, images, labels, strict=True):
        records[row, 0] = label
        records[row, 1:] = decode_image(image).transpose(2, 0, 1).ravel()
    return records


def _tfds_examples(path: Path) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
    return {split: _examples(records) for split, records in _read_members(path).items()}


def _examples(records: Records) -> Iterator[tuple[int, dict[str, object]]]:
    for key, record in enumerate(records):
        image = record[1:].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        yield key, {"image": np.ascontiguousarray(image), "label": int(record[0])}


def _check_labels(labels: Sequence[int] | np.ndarray, where: str) -> None:
    wrong = np.setdiff1d(labels, np.arange(NUM_CLASSES))
    if len(wrong):
        raise ValueError(f"{where} has labels {wrong.tolist()}, which are not in 0..9")


def _check_official(source: Source, splits: dict[str, Records]) -> None:
    """Counts and checksums of batches; unpacked data have no other proof."""
    for split, expected in BATCH_SHA1.items():
        records, num_expected = splits[split], BATCH_RECORDS * len(expected)
        if len(records) != num_expected:
            raise unofficial(source, f"{len(records):,} images in {split}", f"{num_expected:,}")
        batches = records.reshape(-1, BATCH_RECORDS * RECORD_BYTES)
        found = [hashlib.sha1(batch.tobytes()).hexdigest() for batch in batches]
        if found != expected:
            raise unofficial(source, f"batches of {split} with sha1 {found}", expected)
