"""Figure 2: validation loss against training time, a panel a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lra.report.accuracy import AccuracyTable, Column
from lra.report.published import read_shipped
from lra.report.records import read_metrics
from lra.report.style import declutter, legend_below, log_scale, save_with_rows, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
HOLLOW = "hollow: NAACL 2022 (V100), end and lowest loss"


def draw_learning(table: AccuracyTable, stem: Path, variants: Sequence[str]) -> list[Path]:
    """Draw the curves of `variants` as PDF and PNG beside the CSV; return the files.

    Seconds are those of training and of validation together, as in the paper. The first seed is
    drawn full, the others faint. Raises `ValueError` if there is no curve.
    """
    from matplotlib.figure import Figure

    columns = [column for column in table.columns if column.recipe is not None]
    rows = [row for column in columns for row in learning_rows(table, column, variants)]
    if not any(row["source"] == "run" for row in rows):
        raise ValueError(f"no run of {', '.join(variants)} has been checked yet: no curve to draw")
    num_columns = min(len(columns), 3)
    num_rows = -(-len(columns) // num_columns)
    size = (4.2 * num_columns, 3.1 * num_rows + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axis, column in zip(axes, columns, strict=False):
        _draw_panel(axis, [row for row in rows if row["task"] == column.name], variants)
        axis.set_title(column.heading, loc="left", fontweight="bold")
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    for axis in axes[::num_columns]:
        axis.set_ylabel("validation loss, nats")
    labels = [*(table.rows[variant] for variant in variants), HOLLOW]
    legend_below(figure, axes[: len(columns)], labels)
    figure.suptitle(str(table.conditions), fontsize="small", color="#444444")
    return save_with_rows(figure, stem, rows)


def learning_rows(table: AccuracyTable, column: Column, variants: Sequence[str]) -> list[Row]:
    """A line a check of every run, and a line a published curve: its end and its lowest loss."""
    rows: list[Row] = []
    for variant in variants:
        cell = table.cells.get((variant, column.name))
        identity = {"task": column.name, "variant": variant, "label": table.rows.get(variant)}
        for path, record in cell.runs.items() if cell else ():
            for check in read_metrics(path):
                seconds = check["time/train_seconds"] + check["time/eval_seconds"]
                rows.append(
                    identity
                    | {"source": "run", "seed": record["seed"], "step": check["step"]}
                    | {"seconds": seconds, "val_loss": check["val/loss"], "run_directory": path}
                )
        known = read_shipped("published_figures.json")["figure2"]["tasks"].get(
            column.published_task, {}
        )
        if cell and variant in known:
            end = known[variant]
            source = {"source": "NAACL 2022, Figure 2", "seconds": end["end_seconds"]}
            rows.append(identity | source | {"val_loss": end["min_loss"]})
    return rows


def _draw_panel(axis: "Axes", rows: Sequence[Row], variants: Sequence[str]) -> None:
    for variant in variants:
        style = style_of(variant, variants)
        ours = [row for row in rows if row["variant"] == variant and row["source"] == "run"]
        seeds = sorted({row["seed"] for row in ours})
        for seed in seeds:
            curve = [row for row in ours if row["seed"] == seed]
            is_first = seed == seeds[0]
            axis.plot(
                [row["seconds"] for row in curve], [row["val_loss"] for row in curve],
                color=style.color, ls=style.line, marker=style.marker if is_first else None, ms=4.5,
                markevery=max(1, len(curve) // 8), markeredgecolor="white", markeredgewidth=0.5,
                lw=1.6 if is_first else 0.8, alpha=1.0 if is_first else 0.35,
                label=ours[0]["label"] if is_first else None,
            )  # fmt: skip
        for row in rows:
            if row["variant"] == variant and row["source"] != "run":
                axis.plot(
                    row["seconds"], row["val_loss"], marker=style.marker, ms=7, alpha=0.4,
                    color=style.color, markerfacecolor="none", ls="none",
                )  # fmt: skip
    if any(row["source"] != "run" for row in rows):
        axis.plot(
            [], [], marker="o", ms=7, alpha=0.5, color="#000000", markerfacecolor="none", ls="none",
            label=HOLLOW,
        )  # fmt: skip
    log_scale(axis)
    axis.set_xlabel("seconds of training and validation")
    declutter(axis)
