"""Reading the layout in which the Mega release (lra.zip) holds the tasks.

Ma et al., "Mega: Moving Average Equipped Gated Attention", ICLR 2023, whose data are binarized by
fairseq. A task's directory holds, for each split train, valid and test,

    text tasks    src-bin/<split>.idx and .bin, src-bin/dict.txt, the same below label-bin,
                  and, where documents are compared, src1-bin
    pixel tasks   input/<split>.src and label/<split>.label, integers, a line an example

In a text task an id stands for a line of dict.txt, after four ids of fairseq's own; </s> ends each
sample. The class of an example is what dict.txt says, not its line, which goes by frequency.
"""

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from lra.tasks.documents import LabeledPair

MegaSplit = Literal["train", "valid", "test"]
SPLITS: tuple[MegaSplit, ...] = ("train", "valid", "test")

INDEX_MAGIC = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1)
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
FAIRSEQ_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
END = FAIRSEQ_SYMBOLS.index("</s>")
SPACE = ord(" ")
PADDING, OTHER = -1, -2
"""What an id stands for if not for a byte; 0, offset by 1, is padding."""


def read_texts(directory: Path, split: MegaSplit) -> Iterator[tuple[bytes, int]]:
    """Text, as bytes, and class of each example of a split."""
    texts = _read_bytes(directory / "src-bin", directory / "src-bin", split)
    return zip(texts, _read_labels(directory, split), strict=True)


def read_pairs(directory: Path, split: MegaSplit) -> Iterator[LabeledPair]:
    """The pairs of texts of a split, as bytes."""
    first = _read_bytes(directory / "src-bin", directory / "src-bin", split)
    second = _read_bytes(directory / "src1-bin", directory / "src-bin", split)
    for label, *texts in zip(_read_labels(directory, split), first, second, strict=True):
        yield LabeledPair(label, *texts)


def read_pixels(directory: Path, split: MegaSplit) -> Iterator[tuple[bytes, int]]:
    """Pixels, row by row, and class of each image of a split."""
    images = _read_integers(directory / f"input/{split}.src")
    labels = _read_integers(directory / f"label/{split}.label")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        if len(label) != 1:
            raise ValueError(f"image {number} of {directory}/{split} has {len(label)} labels")
        yield image, label[0]


def read_words(directory: Path, split: MegaSplit) -> Iterator[tuple[list[str], int]]:
    """Words and class of each sample of a split."""
    symbols = np.array(_read_dictionary(directory / "src-bin"), dtype=object)
    samples, labels = _read_samples(directory / "src-bin", split), _read_labels(directory, split)
    for ids, label in zip(samples, labels, strict=True):
        yield symbols[ids].tolist(), label


def _read_bytes(directory: Path, dictionary: Path, split: MegaSplit) -> Iterator[bytes]:
    """Texts of bytes that are written as decimal numbers, offset by 1 or not."""
    symbols = _read_dictionary(dictionary)
    byte_of_id = _byte_of_id(symbols, dictionary)
    for number, ids in enumerate(_read_samples(directory, split)):
        text = byte_of_id[ids]
        text = text[: np.flatnonzero(text != PADDING).max(initial=-1) + 1]
        if text.min(initial=0) < 0:
            word = symbols[ids[text.argmin()]]
            raise ValueError(f"sample {number} of {directory}/{split}: {word!r} is not a byte")
        yield text.astype(np.uint8).tobytes()


def _byte_of_id(symbols: list[str], dictionary: Path) -> Int[np.ndarray, " ids"]:
    """The byte that each id stands for, `PADDING` or `OTHER`; a space is the most frequent byte."""
    most_frequent = symbols[len(FAIRSEQ_SYMBOLS)]
    if most_frequent not in (str(SPACE), str(SPACE + 1)):
        raise ValueError(
            f"the first word of {dictionary}/dict.txt is {most_frequent!r}, not {SPACE} or "
            f"{SPACE + 1}, a space among bytes that are written as numbers, offset by 1 or not"
        )
    offset = int(most_frequent) - SPACE
    values = [int(word) - offset if word.isdecimal() else OTHER for word in symbols]
    return np.array([value if value < 256 else OTHER for value in values], dtype=np.int16)


def _read_labels(directory: Path, split: MegaSplit) -> Iterator[int]:
    symbols = _read_dictionary(directory / "label-bin")
    for [label] in _read_samples(directory / "label-bin", split):
        yield int(float(symbols[label]))


def _read_dictionary(directory: Path) -> list[str]:
    """The word of each id."""
    lines = (directory / "dict.txt").read_text(encoding="utf-8").splitlines()
    return [*FAIRSEQ_SYMBOLS, *(line.rsplit(" ", 1)[0] for line in lines)]


def _read_samples(directory: Path, split: MegaSplit) -> Iterator[Int[np.ndarray, "_"]]:
    """The ids of each sample, without </s> at the end."""
    index, content = directory / f"{split}.idx", directory / f"{split}.bin"
    head = struct.Struct(f"<{len(INDEX_MAGIC)}sBQ")
    entries = index.read_bytes()
    magic, code, count = head.unpack(entries[: head.size].ljust(head.size))
    if magic != INDEX_MAGIC or code not in DTYPES:
        raise ValueError(f"{index} is not an index of fairseq's mmap format, version 1")
    bounds = np.append(0, np.frombuffer(entries, "<i4", count, head.size).cumsum(dtype=np.int64))
    ids = np.fromfile(content, DTYPES[code])
    if len(ids) != bounds[-1]:
        raise ValueError(f"{content} has {len(ids)} ids, expected {bounds[-1]}; it is cut short")
    for start, end in itertools.pairwise(bounds):
        yield ids[start : end - (end > start and ids[end - 1] == END)]


def _read_integers(path: Path) -> Iterator[bytes]:
    """Integers in 0..255, a line an example."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield bytes(map(int, line.split()))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
