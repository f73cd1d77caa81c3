"""ListOps from files that others have written: the official release's, and Mega's.

The release's `basic_<split>.tsv` have a header and then `Source <tab> Target` a line, which ends in
CR LF. An expression of n tokens has n - 1 pairs of parentheses besides, `( ( ( [MAX 4 ) 3 ) ] )`:
left-nested, without meaning, and removed here. The value of each expression is computed and must be
its label, so files without closing brackets or of another grammar are never taken for ListOps.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from lra.tasks import mega
from lra.tasks.listops_generator import (
    CLOSING_BRACKET,
    DIGIT,
    OPERATOR,
    VOCAB,
    apply_operators,
)
from lra.tasks.store import Sequences

OFFICIAL_COUNTS = {"train": 96_000, "val": 2_000, "test": 2_000}
LAYOUTS = {
    "release": [f"basic_{split}.tsv" for split in ("train", "val", "test")],
    "mega": [
        *(f"listops/{part}-bin/dict.txt" for part in ("src", "label")),
        *(
            f"listops/{part}-bin/{split}.{kind}"
            for part in ("src", "label")
            for split in ("train", "valid", "test")
            for kind in ("idx", "bin")
        ),
    ],
    "pickles": [f"lra-listops.{split}.pickle" for split in ("train", "dev", "test")],
}
HEADER = [b"Source", b"Target"]
LABELS = [b"%d" % value for value in range(10)]

CHECKED_AT_ONCE = 1000

_BYTE_OF_OPERATOR = {
    word.encode(): bytes([0xF0 + i]) for i, word in enumerate(VOCAB[OPERATOR:CLOSING_BRACKET])
}
_ID_OF_BYTE = bytearray(256)
for _i, _word in enumerate(VOCAB[DIGIT:], start=DIGIT):
    _ID_OF_BYTE[ord(_BYTE_OF_OPERATOR.get(_word.encode(), _word.encode()))] = _i
_ID_OF_BYTE[ord("X")] = CLOSING_BRACKET  # the release's input pipeline calls it so


def read_split(layout: str, files: dict[str, Path], split: int) -> Sequences:
    """A split (0 train, 1 validation, 2 test) that lies in one of `LAYOUTS`."""
    if layout == "pickles":
        raise ValueError(
            "the pickles of ListOps have ids that depend on the run that wrote them, and those of "
            "the Skeinformer release lack the closing brackets, without which an expression has no "
            "value; take the release's basic_*.tsv, or regenerate the data (prepare.source=null)"
        )
    if layout == "mega":
        directory = files["listops/src-bin/dict.txt"].parents[1]
        name = mega.SPLITS[split]
        examples, place = read_mega(directory, name), f"{directory}, {name}"
    else:
        path = files[LAYOUTS["release"][split]]
        examples, place = read_tsv(path), str(path)
    sequences = Sequences.of(examples)
    check_labels(sequences, place)
    return sequences


def read_tsv(path: Path) -> Iterator[tuple[bytes, int]]:
    """Token ids and label of each expression in a file of the release."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            fields = line.removesuffix(b"\n").removesuffix(b"\r").split(b"\t")
            if number == 1 and fields == HEADER:
                continue
            try:
                expression, label = fields
                yield encode(expression), LABELS.index(label)
            except ValueError as error:
                message = f"{path}, line {number}, is not an expression and its value: {error}"
                raise ValueError(message) from error


def read_mega(directory: Path, split: mega.MegaSplit) -> Iterator[tuple[bytes, int]]:
    """Token ids and label of each expression in Mega's layout."""
    for words, label in mega.read_words(directory, split):
        yield encode(" ".join(words).encode()), label


def encode(expression: bytes) -> bytes:
    """Token ids of an expression, with or without the release's parentheses."""
    num_words = expression.count(b" ") + 1
    for operator, byte in _BYTE_OF_OPERATOR.items():
        expression = expression.replace(operator, byte)
    ids = expression.translate(_ID_OF_BYTE, b"() ")
    if 0 in ids or num_words not in (len(ids), 3 * len(ids) - 2):
        raise ValueError(f"{num_words} words give {len(ids)} tokens, {ids.count(0)} unknown")
    return ids


def check_labels(sequences: Sequences, place: str) -> None:
    """Raise `ValueError` unless each label is the value of its expression."""
    for first in range(0, len(sequences), CHECKED_AT_ONCE):
        offsets = sequences.offsets[first : first + CHECKED_AT_ONCE + 1]
        labels = sequences.labels[first : first + CHECKED_AT_ONCE]
        try:
            values = values_of(sequences.tokens[offsets[0] : offsets[-1]], offsets - offsets[0])
        except ValueError as error:
            raise ValueError(f"{place}: expressions from number {first} on: {error}") from error
        if (wrong := np.flatnonzero(values != labels)).size:
            number = wrong[0]
            raise ValueError(
                f"{place}: expression {first + number} has value {values[number]}, but its label "
                f"is {labels[number]}"
            )


def values_of(
    tokens: UInt8[np.ndarray, " tokens"], offsets: Int64[np.ndarray, " bounds"]
) -> UInt8[np.ndarray, " bounds-1"]:
    """The value of each expression, the innermost operators first."""
    is_digit = tokens < OPERATOR
    is_operator = ~is_digit & (tokens != CLOSING_BRACKET)
    step = is_operator.astype(np.int8) - (tokens == CLOSING_BRACKET)
    depth = step.cumsum(dtype=np.int64)
    if not is_operator[offsets[:-1]].all() or (depth == 0).nonzero()[0].tolist() != list(
        offsets[1:] - 1
    ):
        raise ValueError("brackets are not closed where an expression ends")
    values = tokens - np.uint8(DIGIT)
    for level in range(int(depth.max()), 0, -1):
        operators = np.flatnonzero(is_operator & (depth == level))
        is_argument = (depth == level) & is_digit | (depth == level + 1) & is_operator
        arguments = np.flatnonzero(is_argument)
        owners = np.searchsorted(operators, arguments) - 1
        num_args = np.bincount(owners, minlength=len(operators))
        if not 1 <= num_args.min() <= num_args.max() <= 255:
            raise ValueError(f"an operator has {num_args.min()} arguments")
        values[operators] = apply_operators(
            tokens[operators] - np.uint8(OPERATOR), num_args.astype(np.uint8), values[arguments]
        )
    return values[offsets[:-1]]
