"""Random draws under control: noise by coordinates, choices replayed, dropout off.

The number of draws may depend on shapes, so torch's generator gives a token other noise as soon
as its sequence is padded further or has other neighbors. These modes reach below the variant and
need no cooperation from it.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@lru_cache(maxsize=256)
def noise_at(
    shape: tuple[int, ...], stream: int, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "..."]:
    """Uniform noise in (0, 1) that depends on the coordinates of an entry, and not on the shape.

    A tensor's noise is the corner of that of any larger one. `stream` selects independent noise;
    the resolution is that of `dtype`, so that a cast to it cannot reach 1. Calls share the result:
    do not write to it.
    """
    word = scrambled(torch.full((), stream + 1))
    for dim, size in enumerate(shape):
        coordinate = torch.arange(size).view(-1, *[1] * (len(shape) - dim - 1))
        word = scrambled(word ^ scrambled(coordinate + (dim << 32)))
    bits = min(52, round(-math.log2(torch.finfo(dtype).eps)))
    return (((word >> (64 - bits)) & ((1 << bits) - 1)).double() + 0.5) * 2.0**-bits


def scrambled(word: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """A 64-bit hash of every entry: the finalizer of SplitMix64, on wrapping integers."""
    word = word * -7046029254386353131
    word = (word ^ ((word >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    word = (word ^ ((word >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return word ^ ((word >> 31) & 0x1FFFFFFFF)


def normal(uniform: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard normal noise by inversion."""
    return torch.erfinv(2 * uniform - 1) * math.sqrt(2)


def integers(uniform: Float[Tensor, "*shape"], *bounds: Any) -> Float[Tensor, "*shape"]:
    """Integers in [0, high) or [low, high), from the bounds that stand before the size."""
    low, high = bounds if len(bounds) == 2 else (0, bounds[0])
    return (low + (high - low) * uniform).floor()


# What an operator's result becomes, from uniform noise of its shape and the operator's arguments.
DRAWS: dict[Any, Callable[..., Tensor]] = {
    aten.rand: lambda u, size: u,
    aten.rand_like: lambda u, like: u,
    aten.randn: lambda u, size: normal(u),
    aten.randn_like: lambda u, like: normal(u),
    aten.randint: lambda u, *bounds_size: integers(u, *bounds_size[:-1]),
    aten.randint_like: lambda u, like, *bounds: integers(u, *bounds),
    aten.random_: lambda u, out, *bounds: integers(u, *bounds),
    aten.uniform_: lambda u, out, low=0.0, high=1.0: low + (high - low) * u,
    aten.normal_: lambda u, out, mean=0.0, std=1.0: mean + std * normal(u),
    aten.exponential_: lambda u, out, rate=1.0: -torch.log1p(-u) / rate,
    aten.bernoulli: lambda u, probs, p=None: u < (probs if p is None else p),
    aten.bernoulli_: lambda u, out, p=0.5: u < p,
}


class InjectedNoise(TorchDispatchMode):
    """Answer the i-th draw with `noise_at(shape, i)`: the same token receives the same noise.

    Noise has to be drawn with a dimension each for sequence, head and token, not flattened. An
    operator that draws and is not in `DRAWS` raises RuntimeError.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.num_draws = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        state = torch.get_rng_state()
        out = func(*args, **kwargs)
        if func.overloadpacket in DRAWS:
            self.num_draws += 1
            is_uniform = func.overloadpacket in (aten.rand, aten.rand_like, aten.uniform_)
            resolution = out.dtype if is_uniform else torch.float64
            noise = noise_at(out.shape, (self.seed << 16) + self.num_draws, resolution).to(
                out.device
            )
            return out.copy_(DRAWS[func.overloadpacket](noise, *args))
        if not torch.equal(state, torch.get_rng_state()):
            known = ", ".join(str(op).removeprefix("aten.") for op in DRAWS)
            raise RuntimeError(f"the suite cannot inject noise into {func}; draw with: {known}")
        return out


class ReplayedChoices(TorchDispatchMode):
    """Record the indices that the first run chooses, and impose them on the runs that follow.

    Rounding may flip a near tie, which is no error of the method. The first run records; `replay`
    begins each run that repeats it.
    """

    CHOOSING = (
        *(aten.topk, aten.sort, aten.max, aten.min, aten.kthvalue),  # values and indices
        *(aten.argmax, aten.argmin, aten.argsort, aten.searchsorted, aten.bucketize),
    )

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Tensor] = []
        self.replayed: Iterator[Tensor] | None = None

    def replay(self) -> "ReplayedChoices":
        """The mode, about to repeat the recorded choices."""
        self.replayed = iter(self.recorded)
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket not in self.CHOOSING:
            return out
        has_values = isinstance(out, tuple)
        index = out[1] if has_values else out
        if index.is_floating_point():  # a maximum without a place
            return out
        if self.replayed is None:
            self.recorded.append(index.clone())
            return out
        index = next(self.replayed).clone()
        if not has_values:
            return index
        names = [argument.name for argument in func._schema.arguments]
        dim = {**dict(zip(names, args, strict=False)), **kwargs}.get("dim", -1)
        if index.ndim == args[0].ndim:
            return args[0].gather(dim, index), index
        return args[0].gather(dim, index.unsqueeze(dim)).squeeze(dim), index


class WithoutDropout(TorchFunctionMode):
    """Switch off `F.dropout`, `nn.Dropout` and the dropout of `scaled_dot_product_attention`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return args[0]
        if func is F.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = {**kwargs, **({"dropout_p": 0.0} if len(args) <= 4 else {})}
        return func(*args, **kwargs)
