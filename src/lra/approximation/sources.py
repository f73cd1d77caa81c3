"""Where Q, K and V come from: the contract of a source, and the two that need no model.

`conf/source/<name>.yaml` describes a source; a source of your own is a class and a YAML.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lra.approximation.errors import Projections


@runtime_checkable
class Source(Protocol):
    """Sequences of (Q, K, V), the same ones whenever they are asked for."""

    num_heads: int
    head_dim: int
    lengths: tuple[int, ...]
    """The lengths in tokens that are studied where none are asked for."""

    @property
    def label(self) -> str:
        """A name for tables and folders, beside that of the YAML; may be empty."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """All that decides what the sequences are, checksums included; values are JSON's.

        `step` is that of a trained model.
        """
        ...

    def num_sequences(self, num_tokens: int) -> int | None:
        """How many there are of this length; None for any number.

        Raises ValueError for a length that the source does not have.
        """
        ...

    def projections(self, sequence: int, num_tokens: int) -> Projections:
        """Q, K, V of a sequence, numbered from 0."""
        ...


class GaussianSource:
    """Independent standard normal K and V; Q is scaled so that scores have `score_scale` as std."""

    label = ""

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        score_scale: float,
        lengths: Sequence[int],
        seed: int,
    ) -> None:
        if score_scale < 0:
            raise ValueError(f"source.score_scale={score_scale} is negative")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.score_scale = score_scale
        self.lengths = tuple(lengths)
        self.seed = seed

    @property
    def description(self) -> dict[str, Any]:
        return {
            "kind": "gaussian",
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "score_scale": self.score_scale,
            "seed": self.seed,
        }

    def num_sequences(self, num_tokens: int) -> None:
        return None

    def projections(self, sequence: int, num_tokens: int) -> Projections:
        generator = torch.Generator().manual_seed(stream_seed(self.seed, sequence, num_tokens))
        shape = (3, 1, self.num_heads, num_tokens, self.head_dim)
        q, k, v = torch.randn(shape, generator=generator)
        return Projections(self.score_scale * q, k, v, torch.ones(1, num_tokens, dtype=torch.bool))


class FileSource:
    """`q`, `k`, `v`, t n p or b h n p, of an .npz or .safetensors file; `mask`, b n, if it has one.

    t matrices are t sequences of one head. Shorter lengths take the first tokens.
    """

    def __init__(self, *, path: str | None) -> None:
        if path is None:
            raise ValueError("source=file needs file=PATH, an .npz or a .safetensors with q, k, v")
        self.path = Path(path)
        arrays = read_arrays(self.path)
        missing = [name for name in ("q", "k", "v") if name not in arrays]
        if missing:
            raise ValueError(f"{path} has no array {', '.join(missing)}; it has {sorted(arrays)}")
        self.q, self.k, self.v = (with_heads(arrays[name], name, path) for name in ("q", "k", "v"))
        if not self.q.shape == self.k.shape == self.v.shape or self.q.shape[-1] < 2:
            raise ValueError(
                f"{path}: q {tuple(self.q.shape)}, k {tuple(self.k.shape)} and "
                f"v {tuple(self.v.shape)} have to be of one shape, with two features or more"
            )
        b, self.num_heads, n, self.head_dim = self.q.shape
        self.mask = arrays.get("mask", torch.ones(b, n)).bool()
        if self.mask.shape != (b, n) or not self.mask.any(-1).all():
            raise ValueError(
                f"{path}: mask {tuple(self.mask.shape)} is not {(b, n)} with a token in every row"
            )
        self.lengths = (n,)

    @property
    def label(self) -> str:
        return self.path.stem

    @property
    def description(self) -> dict[str, Any]:
        return {
            "kind": "file",
            "name": self.path.name,
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "shape": list(self.q.shape),
        }

    def num_sequences(self, num_tokens: int) -> int:
        if num_tokens > self.lengths[0]:
            raise ValueError(f"{self.path} has {self.lengths[0]} tokens, not {num_tokens}")
        return len(self.q)

    def projections(self, sequence: int, num_tokens: int) -> Projections:
        q, k, v = (x[sequence, None, :, :num_tokens] for x in (self.q, self.k, self.v))
        return Projections(q, k, v, self.mask[sequence, None, :num_tokens])


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file; raises ValueError for another format, FileNotFoundError for none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file  # comes with transformers, not with torch

        arrays: dict[str, Tensor] = load_file(path)
        return arrays
    raise ValueError(f"{path} is neither an .npz nor a .safetensors file")


def with_heads(array: Tensor, name: str, path: str) -> Float[Tensor, "b h n p"]:
    """The array with a dimension of heads; raises ValueError if it is no stack of matrices."""
    if array.ndim not in (3, 4) or not array.is_floating_point() or not array.isfinite().all():
        raise ValueError(
            f"{path}: {name} {tuple(array.shape)}, {array.dtype}, is not a finite array of floats "
            f"with the dimensions t n p or b h n p"
        )
    return array if array.ndim == 4 else array[:, None]


def stream_seed(*numbers: int) -> int:
    """A seed for a generator of its own, from what identifies it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
