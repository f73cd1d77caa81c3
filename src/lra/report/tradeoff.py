"""Accuracy, time and memory in one picture a task, as the LRA paper sums methods up.

Tay et al., Long Range Arena, https://arxiv.org/abs/2011.04006, Figure 3.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lra.report.accuracy import AccuracyTable, Column
from lra.report.style import declutter, legend_below, log_scale, save_with_rows, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
LARGEST_AREA = 1600.0
"""Of a disc, in square points: the largest memory of a panel."""


def draw_tradeoff(table: AccuracyTable, stem: Path, variants: Sequence[str]) -> list[Path]:
    """Draw every completed variant as PDF and PNG beside the CSV; return the files.

    Raises `ValueError` where no run is completed.
    """
    from matplotlib.figure import Figure

    columns = [column for column in table.columns if tradeoff_rows(table, column, variants)]
    if not columns:
        raise ValueError(f"no run of {', '.join(variants)} is completed: nothing to draw")
    num_columns = min(len(columns), 3)
    num_rows = -(-len(columns) // num_columns)
    figure = Figure(figsize=(5 * num_columns, 4 * num_rows + 0.4), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    rows: list[Row] = []
    for axis, column in zip(axes, columns, strict=False):
        panel = tradeoff_rows(table, column, variants)
        _draw_panel(axis, panel, variants, column)
        rows += panel
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    legend_below(figure, axes[: len(columns)], [table.rows[variant] for variant in variants])
    figure.suptitle(str(table.conditions), fontsize="small", color="#444444")
    return save_with_rows(figure, stem, rows)


def tradeoff_rows(table: AccuracyTable, column: Column, variants: Sequence[str]) -> list[Row]:
    """Of every variant with completed runs: test accuracy, time of a step, peak memory."""
    rows: list[Row] = []
    for variant in variants:
        cell = table.cells.get((variant, column.name))
        if cell is None or cell.score is None:
            continue
        done = {path: run for path, run in cell.runs.items() if run["status"] == "completed"}
        steps = [run["cost"]["seconds_per_step_median"] for run in done.values()]
        peaks = [run["cost"]["peak_allocated_bytes"] for run in done.values()]
        if None in steps or None in peaks:
            continue
        rows.append(
            {
                "task": column.name,
                "variant": variant,
                "label": table.rows[variant],
                "accuracy": cell.score.mean,
                "sd": cell.score.sd,
                "seconds_per_step": statistics.fmean(steps),
                "peak_allocated_bytes": max(peaks),
                "num_seeds": len(done),
                "run_directories": ";".join(map(str, done)),
            }
        )
    return rows


def _draw_panel(axis: "Axes", rows: Sequence[Row], variants: Sequence[str], column: Column) -> None:
    largest = max(row["peak_allocated_bytes"] for row in rows)
    for row in sorted(rows, key=lambda row: -row["peak_allocated_bytes"]):
        style = style_of(row["variant"], variants)
        x, y = row["seconds_per_step"], 100 * row["accuracy"]
        axis.scatter(x, y, _area(row, rows), color=style.color, alpha=0.25, lw=0)
        if row["sd"] is not None:
            axis.errorbar(x, y, 100 * row["sd"], color=style.color, lw=1, capsize=2)
        axis.plot(
            x, y, marker=style.marker, color=style.color, ms=6, markeredgecolor="white",
            markeredgewidth=0.6, ls="none", label=row["label"],
        )  # fmt: skip
    lowest, highest = (f(100 * row["accuracy"] for row in rows) for f in (min, max))
    constant = 100 * (column.constant_accuracy or math.nan)
    if lowest - constant < 2 * max(highest - lowest, 5):  # else it would press the others together
        axis.axhline(constant, color="#666666", ls=":", lw=1)
        axis.annotate(
            "always one class", (0, constant), (2, 2),
            xycoords=("axes fraction", "data"), textcoords="offset points", fontsize="x-small",
            color="#555555",
        )  # fmt: skip
    axis.margins(x=0.2, y=0.2)
    log_scale(axis)
    memory = f"{largest / 2**30:.3g} GiB" if largest >= 2**30 else f"{largest / 2**20:.3g} MiB"
    axis.set_title(f"{column.heading}: largest disc {memory}", loc="left", fontsize="medium")
    axis.set_xlabel("seconds a training step; area: peak memory")
    axis.set_ylabel("test accuracy, %")
    declutter(axis)


def _area(row: Row, rows: Sequence[Row]) -> float:
    largest = max(other["peak_allocated_bytes"] for other in rows)
    return float(LARGEST_AREA * row["peak_allocated_bytes"] / largest)
