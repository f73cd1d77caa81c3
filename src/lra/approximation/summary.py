"""From the trials of cells to means and standard errors: a row of the CSV, a line of a table."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import Float64
from tabulate import tabulate

from lra.approximation.cells import Cell
from lra.approximation.predictions import Norm
from lra.files import write_text

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
    measured_to_theory: Estimate | None
    """The root of the mean square over that of the closed form."""
    closed_form_z: float | None
    """Mean difference of the squares from the closed form, in standard errors."""
    mean_square: float | None
    """Of the error that the closed form is about."""
    predicted_mean_square: float | None
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

    @property
    def model_family(self) -> str:
        """The source, without the step of a model in training."""
        return self.source.removesuffix(f"-step_{self.step}")


def summarize(cell: Cell) -> Row:
    """The figures of a cell; raises ValueError if it has fewer than two trials."""
    if cell.num_trials < 2:
        raise ValueError(f"{cell.path} has {cell.num_trials} trials: no standard error")
    trials = {name: np.array(values) for name, values in cell.trials.items()}
    identity, details, description = cell.identity, cell.details, cell.identity["description"]
    spectral, exact = trials["spectral"], trials["exact_spectral"]
    closed_form = against_closed_form(trials)
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
        measured_to_theory=closed_form.ratio,
        closed_form_z=closed_form.z,
        mean_square=closed_form.measured,
        predicted_mean_square=closed_form.theory,
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


@dataclass(frozen=True)
class Comparison:
    """A measured mean square against the closed form."""

    ratio: Estimate | None = None
    z: float | None = None
    measured: float | None = None
    theory: float | None = None


def against_closed_form(trials: Mapping[str, Float64[np.ndarray, " t"]]) -> Comparison:
    """The comparison, empty where there is no closed form."""
    for norm in get_args(Norm):
        expected = trials.get(f"predicted_{norm}_square")
        if expected is not None:
            squares = trials[norm] ** 2
            difference, ratio = mean(squares - expected), ratio_of_means(squares, expected)
            root = math.sqrt(ratio.mean)
            return Comparison(
                ratio=Estimate(root, ratio.standard_error / (2 * root)),
                z=difference.mean / difference.standard_error,
                measured=float(squares.mean()),
                theory=float(expected.mean()),
            )
    return Comparison()


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A line a cell; every estimate is a column and one for its standard error; "" where none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for f in fields(Row) for name in columns(f)])
    for row in rows:
        writer.writerow([value for f in fields(Row) for value in values(f, row)])
    write_text(path, text.getvalue())


def columns(column: Field[object]) -> list[str]:
    """The names of a field's columns."""
    is_estimate = "Estimate" in str(column.type)
    return [column.name, f"{column.name}_se"] if is_estimate else [column.name]


def values(column: Field[object], row: Row) -> list[object]:
    """What stands in a field's columns."""
    value = getattr(row, column.name)
    if isinstance(value, Estimate):
        return [f"{value.mean:.6g}", f"{value.standard_error:.3g}"]
    return [value] * len(columns(column))


def markdown_tables(rows: Sequence[Row]) -> list[str]:
    """A table a setting."""
    return [table([row for row in rows if row.setting == s]) for s in settings(rows)]


def settings(rows: Iterable[Row]) -> list[tuple[str, int, float]]:
    """The settings of the rows, in their order."""
    return list(dict.fromkeys(row.setting for row in rows))


def table(rows: Sequence[Row]) -> str:
    """The rows of one setting."""
    first = rows[0]
    headings = ["attention", "d", "effective", "Mmadd", "‖BV−R‖₂", "relative", "to V-Mean"]
    headings += ["‖BV−R‖_F", "row sums, rms off 1", "measured/theory", "z"]
    lines = [
        [
            row.attention,
            optional(row.num_features, "d"),
            optional(row.effective_features, "d"),
            f"{row.multiply_adds / 1e6:.1f}",
            with_error(row.spectral),
            with_error(row.relative),
            with_error(row.ratio_to_v_mean),
            with_error(row.frobenius),
            with_error(row.row_sum),
            MISSING if row.measured_to_theory is None else with_error(row.measured_to_theory),
            optional(row.closed_form_z, "+.1f"),
        ]
        for row in rows
    ]
    title = (
        f"{first.source}, n = {first.num_tokens}, p = {first.head_dim}, scores × "
        f"{first.temperature:g}: {first.model}; {first.num_trials} trials, seed {first.seed}, "
        f"{first.dtype}; ‖BV‖₂ = {with_error(first.exact_spectral)}"
    )
    alignment = ("left", *["right"] * (len(headings) - 1))
    return f"{title}\n\n" + tabulate(
        lines, headings, "github", disable_numparse=True, colalign=alignment
    )


def optional(value: float | None, form: str) -> str:
    """The number, or a dash for none."""
    return MISSING if value is None else f"{value:{form}}"


def with_error(estimate: Estimate) -> str:
    """Mean ± standard error."""
    if math.isnan(estimate.mean):
        return MISSING
    return f"{estimate.mean:.4g} ± {estimate.standard_error:.2g}"
