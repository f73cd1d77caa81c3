"""Sampling tokens: what Skeinformer and Informer share.

All functions are pure: the caller draws the noise, so that tests can inject it. Sampling is
never differentiated; call it under `torch.no_grad`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def gather_rows(
    x: Float[Tensor, "b h n p"], rows: Int[Tensor, "b h d"]
) -> Float[Tensor, "b h d p"]:
    """Rows of `x` by index, per sequence and head."""
    return x.gather(2, rows[..., None].expand(*rows.shape, x.shape[-1]))


def overwrite_rows(
    out: Float[Tensor, "b h n p"], rows: Int[Tensor, "b h m"], new: Float[Tensor, "b h m p"]
) -> Float[Tensor, "b h n p"]:
    """Replace rows of `out`; of a row given several times, one copy carries the gradient."""
    is_carrier = carries_gradient(rows, out.shape[2])[..., None]
    new = torch.where(is_carrier, new, new.detach())
    return out.scatter(2, rows[..., None].expand_as(new), new)


def carries_gradient(rows: Int[Tensor, "b h m"], num_rows: int) -> Bool[Tensor, "b h m"]:
    """True for one copy of each of the given rows."""
    slots = torch.arange(rows.shape[-1], device=rows.device).expand_as(rows)
    last_slot = torch.zeros_like(rows[..., :1]).expand(*rows.shape[:2], num_rows)
    last_slot = last_slot.scatter_reduce(2, rows, slots, "amax")  # scatter takes any, on a GPU
    return last_slot.gather(2, rows) == slots


def importance_log_weights(
    squared_columns: Float[Tensor, "b h n"], squared_values: Float[Tensor, "b h n"]
) -> Float[Tensor, "b h n"]:
    """log(||B^(i)|| ||V_i||), Equation (5) of Skeinformer, from the squares of both norms."""
    tiny = torch.finfo(torch.float32).tiny  # a key of weight 0 stays available as a last resort
    return squared_columns.clamp_min(tiny).log() / 2 + squared_values.clamp_min(tiny).log() / 2


def pick_tokens(keys: Bool[Tensor, "b n"], uniform: Float[Tensor, "b h m"]) -> Int[Tensor, "b h m"]:
    """Indices of True keys, uniform with replacement, from noise in [0, 1).

    Noise u picks the floor(u * count)-th True key, wherever the mask has its holes. Each sequence
    needs at least one True key.
    """
    rank_of_key = keys.cumsum(-1)  # b n
    rank = pick_positions(rank_of_key[:, -1, None, None], uniform)
    return torch.searchsorted(rank_of_key, (rank + 1).flatten(1)).view_as(rank)


def pick_positions(
    count: int | Int[Tensor, "b 1 1"], uniform: Float[Tensor, "b h m"]
) -> Int[Tensor, "b h m"]:
    """floor(u * count) for noise u in [0, 1)."""
    # u * count may round up to count
    return (uniform.double() * count).long().clamp_max(count - 1)


def sample_without_replacement(
    log_weights: Float[Tensor, "b h n"], exponential: Float[Tensor, "b h n"], num_samples: int
) -> tuple[Int[Tensor, "b h d"], Bool[Tensor, "b h d"]]:
    """Distinct indices drawn one after the other in proportion to the remaining weights.

    The exponential form of the Gumbel top-k trick (Vieira, 2014; Kool et al., ICML 2019, Section
    2.3): the d smallest of E_i / w_i, E_i standard exponential, follow the Plackett-Luce law.

    Returns d = min(num_samples, n) indices and which of them hold a sample: where fewer than d
    weights are non-zero, the remaining slots are False and hold indices of weight zero.
    """
    tiny = torch.finfo(exponential.dtype).tiny
    arrival = log_weights - exponential.clamp_min(tiny).log()
    value, index = arrival.topk(min(num_samples, log_weights.shape[-1]), dim=-1, sorted=False)
    return index, value > float("-inf")


def sample_with_replacement(
    probs: Float[Tensor, "b h n"], uniform: Float[Tensor, "b h d"]
) -> Int[Tensor, "b h d"]:
    """Independent indices with the given probabilities, by inversion of noise in [0, 1)."""
    cumulative = probs.double().cumsum(-1)
    target = uniform * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, target, right=True)
    # u * total may round up to the total: step back to the last index with weight
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).int().argmax(-1, keepdim=True)
    return index.minimum(last)
