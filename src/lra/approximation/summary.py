"""From the trials of cells to means and standard errors: a row of the CSV, a line of a table."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from tabulate import tabulate

from lra.approximation.cells import Cell
from lra.record import write_text

MISSING = "—"


@dataclass(frozen=True)
class Estimate:
    """A mean over trials and its standard error, which takes trials as independent."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class Row:
    """A cell in figures. Errors are those of R against BV; see `lra.approximation.cells`."""

    source: str
    model: str
    step: int | None
    num_tokens: int
    head_dim: int
    temperature: float
    attention: str
    num_features: int | None
    effective_features: int | None
    multiply_adds: float
    dtype: str
    seed: int
    num_trials: int
    spectral: Estimate
    relative: Estimate
    ratio_to_v_mean: Estimate
    frobenius: Estimate
    row_sum: Estimate
    exact_spectral: Estimate
    v_mean_spectral: Estimate
    predicted: Estimate | None
    """The root of the mean square over that of the closed form: 1 where theory holds."""
    closed_form_z: float | None
    """Mean difference of the squares from the closed form, in standard errors."""
    untrained_parameters: str
    commit: str
    device: str
    weights_sha256: str
    text_sha256: str
    cell: str

    @property
    def setting(self) -> tuple[str, int, float]:
        """What rows of one table share."""
        return self.source, self.num_tokens, self.temperature


def summarize(cell: Cell) -> Row:
    """The figures of a cell; raises ValueError if it has fewer than two trials."""
    if cell.num_trials < 2:
        raise ValueError(f"{cell.path} has {cell.num_trials} trials: no standard error")
    trials = {name: np.array(values) for name, values in cell.trials.items()}
    identity, details, description = cell.identity, cell.details, cell.identity["description"]
    spectral, exact = trials["spectral"], trials["exact_spectral"]
    predicted, closed_form_z = against_closed_form(trials, identity["attention"])
    d = identity["num_features"]
    return Row(
        source=identity["source_label"],
        model=str(description.get("model", description["kind"])),
        step=description.get("step"),
        num_tokens=identity["num_tokens"],
        head_dim=identity["head_dim"],
        temperature=identity["temperature"],
        attention=identity["attention"],
        num_features=d,
        effective_features=d and (details["effective_features"] or d),
        multiply_adds=details["multiply_adds"],
        dtype=identity["dtype"],
        seed=identity["seed"],
        num_trials=cell.num_trials,
        spectral=mean(spectral),
        relative=mean(spectral / exact),
        ratio_to_v_mean=ratio_of_means(spectral, trials["v_mean_spectral"]),
        frobenius=mean(trials["frobenius"]),
        row_sum=mean(trials["row_sum"]),
        exact_spectral=mean(exact),
        v_mean_spectral=mean(trials["v_mean_spectral"]),
        predicted=predicted,
        closed_form_z=closed_form_z,
        untrained_parameters=" ".join(details["untrained_parameters"]),
        commit=str(details["git"]["commit"]),
        device=details["environment"]["device"],
        weights_sha256=description.get("weights_sha256", description.get("sha256", "")),
        text_sha256=description.get("text_sha256", ""),
        cell=str(cell.path),
    )


def mean(values: Float64[np.ndarray, " t"]) -> Estimate:
    """Mean and standard error."""
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


def ratio_of_means(
    numerator: Float64[np.ndarray, " t"], denominator: Float64[np.ndarray, " t"]
) -> Estimate:
    """Ratio of two means over the same trials; standard error by the delta method."""
    if not denominator.mean():
        return Estimate(math.nan, math.nan)
    ratio = numerator.mean() / denominator.mean()
    residual = mean((numerator - ratio * denominator) / denominator.mean())
    return Estimate(float(ratio), residual.standard_error)


def against_closed_form(
    trials: dict[str, Float64[np.ndarray, " t"]], attention: str
) -> tuple[Estimate | None, float | None]:
    """Measured over predicted, root mean squares, and the distance in standard errors."""
    if "predicted_square" not in trials:
        return None, None
    norm = "spectral" if "spectral" in attention else "frobenius"
    squares, expected = trials[norm] ** 2, trials["predicted_square"]
    difference = mean(squares - expected)
    ratio = ratio_of_means(squares, expected)
    root = math.sqrt(ratio.mean)
    return Estimate(root, ratio.standard_error / (2 * root)), (
        difference.mean / difference.standard_error
    )
