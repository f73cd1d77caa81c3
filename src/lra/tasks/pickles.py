"""Reading the pickles of the Skeinformer, Skyformer and Nyströmformer releases, as data only.

`lra-<task>.<train, dev or test>.pickle` holds a list of {"input_ids_0": ids, "label": class};
where documents are compared there is also "input_ids_1". Ids of a text are bytes + 1, padded with
0; those of an image are its pixels. A pickle is a program: this reader knows lists, dictionaries,
numbers and arrays, and refuses all else before it runs. It serves CIFAR-10's pickles as well.

The pickles of ListOps are not read: their ids depend on the run that wrote them, and those of the
Skeinformer release lack the closing brackets, without which an expression has no value.
"""

import pickle
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Integer

from lra.tasks.documents import LabeledPair

_CONSTRUCTORS: dict[str, object] = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.empty(0).__reduce__()[0],
    "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "scalar": np.int64(0).__reduce__()[0],
}
"""What numpy's arrays and numbers are made with."""


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] != "numpy" or name not in _CONSTRUCTORS:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed, since it is not data")
        return _CONSTRUCTORS[name]


def load_data(file: BufferedIOBase) -> object:
    """What a pickle holds; strings of Python 2 are bytes. Raises `ValueError` if it is no data."""
    try:
        return _DataUnpickler(file, encoding="bytes").load()
    except (ValueError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"a damaged pickle, or one of no data: {error}") from error


def read_pickle_split(
    path: Path, content: Literal["text", "pixels"]
) -> Iterator[tuple[bytes, int]]:
    """Text or pixels, as bytes, and class of each example of a split."""
    decode = _text if content == "text" else _pixels
    return ((decode(_ids(row, "input_ids_0")), _label(row)) for row in _read(path))


def read_pickle_pairs(path: Path) -> Iterator[LabeledPair]:
    """The pairs of texts of a split."""
    for row in _read(path):
        first, second = (_text(_ids(row, key)) for key in ("input_ids_0", "input_ids_1"))
        yield LabeledPair(_label(row), first, second)


def _read(path: Path) -> list[object]:
    with path.open("rb") as file:
        try:
            rows = load_data(file)
        except ValueError as error:
            raise ValueError(f"{path} is {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds {type(rows).__name__}, not a list of examples")
    return rows


def _ids(row: object, key: str) -> Integer[np.ndarray, "_"]:
    ids = row.get(key) if isinstance(row, dict) else None
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"an example has {key}={ids!r}, not a list of ids")
    return ids


def _label(row: object) -> int:
    label = row.get("label") if isinstance(row, dict) else None
    if not isinstance(label, int | np.integer) or not 0 <= label < 256:
        raise ValueError(f"an example has label={label!r}, not a class")
    return int(label)


def _text(ids: Integer[np.ndarray, "_"]) -> bytes:
    """Undo the offset and the padding."""
    ids = ids[: np.flatnonzero(ids).max(initial=-1) + 1]
    return _pixels(ids - 1)


def _pixels(ids: Integer[np.ndarray, "_"]) -> bytes:
    if ids.min(initial=0) < 0 or ids.max(initial=0) > 255:
        raise ValueError(f"ids {ids.min()}..{ids.max()} are beyond those of a byte")
    return ids.astype(np.uint8).tobytes()
