"""Closed forms: the squared error that theory expects of a variant, for the methods that have one.

Given Q, K, V and what is drawn before the part that is averaged over (Skeinformer's pilots), the
mean over the method's own noise. A trial stores the prediction beside what was measured.
"""

from dataclasses import dataclass
from functools import singledispatch
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from attention.base import AttentionCore, attendable_keys
from attention.linformer import LinformerAttention, UnreducedJLTAttention
from attention.skeinformer import SkeinformerAttention
from attention.sketching import gather_rows, pick_tokens
from lra.approximation.errors import ExactAttention

Norm = Literal["spectral", "frobenius"]


@dataclass(frozen=True)
class Prediction:
    """The expected square of the error, in one norm."""

    norm: Norm
    squares: Float64[Tensor, " h"]


@singledispatch
def prediction(core: AttentionCore, exact: ExactAttention, seed: int) -> Prediction | None:
    """What theory says of a core called with this seed; None where it says nothing."""
    return None


@prediction.register
def _unreduced_jlt(
    core: UnreducedJLTAttention, exact: ExactAttention, seed: int
) -> Prediction | None:
    """(||B||²_F ||V||²_F + ||BV||²_F) / d, for S with independent entries N(0, 1/d)."""
    squares = exact.column_squares.sum(-1) * value_squares(exact).sum(-1)
    return Prediction("frobenius", (squares + exact.frobenius.square()) / core.sketch.shape[-1])


@prediction.register
def _linformer(core: LinformerAttention, exact: ExactAttention, seed: int) -> Prediction | None:
    """||BV||²₂ + n s² ||V||²_F / d, for projection entries N(0, s²) and near-uniform weights.

    Every row of the output is then about the mean of the d projected values, which is noise of
    mean zero: it adds to the norm of what it should have approximated.
    """
    num_tokens = exact.projections.token_mask.sum()
    num_rows = core.projection.shape[1]
    variance = core.init_std**2
    noise = num_tokens * variance * value_squares(exact).sum(-1) / num_rows
    return Prediction("spectral", exact.spectral.square() + noise)


@prediction.register
def _skeinformer(core: SkeinformerAttention, exact: ExactAttention, seed: int) -> Prediction | None:
    """Definition 3.1: (sum_j ||B^(j)||² ||V_j||² / p_j - ||BV||²_F) / d over the sketched rows.

    Of the columns B^(j), only the rows that pilot reuse leaves to the sketch count.
    """
    if core.row_normalization != "none":
        return None
    inputs = exact.projections
    keys = attendable_keys(inputs.token_mask)
    torch.manual_seed(seed)
    pilot_noise, _ = core.draw_noise(inputs.q)
    pilots = pick_tokens(keys, pilot_noise)
    _, log_weights = core.attend_pilots(inputs.q, inputs.k, inputs.v, keys, pilots)
    columns, output_squares = exact.column_squares, exact.output.square().sum(-1)
    if core.reuse_pilot:
        is_pilot = torch.zeros_like(output_squares).scatter(1, pilots[0], 1.0)
        output_squares = output_squares * (1 - is_pilot)
        columns = columns - pilot_column_squares(exact, pilots, is_pilot)
    terms = columns * value_squares(exact) / log_weights[0].double().softmax(-1)
    squares = (terms.nan_to_num(0.0).sum(-1) - output_squares.sum(-1)) / core.num_samples
    return Prediction("frobenius", squares)


def value_squares(exact: ExactAttention) -> Float64[Tensor, "h n"]:
    """Squared norm of the value of every token; zero at padding."""
    inputs = exact.projections
    return inputs.v[0].double().square().sum(-1) * inputs.token_mask


def pilot_column_squares(
    exact: ExactAttention, pilots: Tensor, is_pilot: Float64[Tensor, "h n"]
) -> Float64[Tensor, "h n"]:
    """Squared norms of the columns of B over the pilot rows, each counted once."""
    inputs = exact.projections
    scores = gather_rows(inputs.q.double(), pilots) @ inputs.k.double().mT  # 1 h m n
    scores = scores * inputs.q.shape[-1] ** -0.5
    weights = scores.masked_fill(~inputs.token_mask[:, None, None], float("-inf")).softmax(-1)[0]
    copies = torch.zeros_like(is_pilot).scatter_add(1, pilots[0], torch.ones_like(weights[..., 0]))
    return (weights.square() / copies.gather(1, pilots[0])[..., None]).sum(1)
