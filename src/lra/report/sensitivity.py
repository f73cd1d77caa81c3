"""Figure 3: accuracy and training time over learning rate, a line a batch size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lra.record import Record
from lra.report.conditions import Conditions, shared_recipe, variant_name
from lra.report.published import read_shipped
from lra.report.style import BLUE, VERMILLION, declutter, save_with_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
SWEPT = ("optimizer.lr", "trainer.batch_size")
STYLES = ((BLUE, "o", "-"), (VERMILLION, "s", "--"))


def draw_sensitivity(records: Mapping[Path, Record], stem: Path) -> list[Path]:
    """Draw one variant on one task as PDF and PNG beside the CSV; return the files.

    Raises `ValueError` for runs that differ in more than learning rate, batch size and seed.
    """
    from matplotlib.figure import Figure

    rows = sensitivity_rows(records)
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = sorted({row["batch_size"] for row in rows})
    for axis, key, heading in (
        (left, "accuracy", "test accuracy, %"),
        (right, "seconds", "seconds of training and validation"),
    ):
        for place, size in enumerate(sizes):
            _draw_line(axis, [r for r in rows if r["batch_size"] == size], key, place, size)
        rates = sorted({row["lr"] for row in rows})
        axis.set_xscale("log")
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.minorticks_off()
        axis.set_xlabel("learning rate")
        axis.set_ylabel(heading)
        declutter(axis)
    right.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize="small")
    figure.suptitle(_title(records), fontsize="small", color="#444444")
    return save_with_rows(figure, stem, rows)


def sensitivity_rows(records: Mapping[Path, Record]) -> list[Row]:
    """A line a completed run, and a line a published setting where the task is Text."""
    conditions = {Conditions.of(record): path for path, record in records.items()}
    variants = {variant_name(record) for record in records.values()}
    if len(conditions) > 1 or len(variants) > 1:
        found = [*map(str, conditions), *sorted(variants)]
        raise ValueError(
            f"one picture, one variant under one setting; there are {'; '.join(found)}"
        )
    recipe = shared_recipe(records, besides=SWEPT)
    rows: list[Row] = [
        {
            "source": "run",
            "batch_size": record["config"]["trainer"]["batch_size"],
            "lr": record["config"]["optimizer"]["lr"],
            "seed": record["seed"],
            "accuracy": 100 * record["result"][f"test_accuracy_{record['result']['headline']}"],
            "seconds": record["cost"]["train_seconds"] + record["cost"]["eval_seconds"],
            "run_directory": path,
        }
        for path, record in records.items()
        if record["status"] == "completed"
    ]
    if not rows:
        raise ValueError("no run is completed: nothing to draw")
    if recipe.task == "text" and not recipe.is_stand_in and variants == {"skeinformer"}:
        settings = read_shipped("published_figures.json")["figure3"]["settings"]
        rows += [{"source": "NAACL 2022, Figure 3"} | setting for setting in settings]
    return rows


def _draw_line(axis: "Axes", rows: Sequence[Row], key: str, place: int, batch_size: int) -> None:
    color, marker, line = STYLES[place % len(STYLES)]
    for source, alpha in (("run", 1.0), ("NAACL 2022, Figure 3", 0.35)):
        found = [row for row in rows if row["source"] == source]
        if not found:
            continue
        rates = sorted({row["lr"] for row in found})
        values = [[row[key] for row in found if row["lr"] == rate] for rate in rates]
        spread = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
        name = f"batch {batch_size}" if source == "run" else f"batch {batch_size}, {source}"
        axis.errorbar(
            rates, [float(np.mean(v)) for v in values], spread, color=color, marker=marker,
            ls=line, alpha=alpha, capsize=2, elinewidth=1, label=name,
            markerfacecolor=color if source == "run" else "none",
        )  # fmt: skip


def _title(records: Mapping[Path, Record]) -> str:
    first, *_ = records.values()
    return f"{variant_name(first)} on {first['task']}, {Conditions.of(first)}"
