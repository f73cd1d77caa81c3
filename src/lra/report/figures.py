"""The runs of a study at a glance: learning, time of a step, memory; a row a setting."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lra.record import Record
from lra.report.comparison import Setting, write_csv
from lra.report.records import read_metrics
from lra.report.style import declutter, save, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_comparison(
    stem: Path,
    settings: Mapping[Setting, Mapping[str, list[Path]]],
    records: Mapping[Path, Record],
) -> list[Path]:
    """A row a setting: validation accuracy against training time, seconds a step, peak memory.

    Written as PDF and PNG beside a CSV of the runs; the curves stand in their `metrics.jsonl`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.9 * len(settings)), dpi=120, layout="constrained")
    axes = figure.subplots(len(settings), 3, squeeze=False, width_ratios=[1.5, 1, 1])
    for row, (setting, variants) in zip(axes, settings.items(), strict=True):
        done = {
            name: completed
            for name, paths in variants.items()
            if (completed := [p for p in paths if records[p]["status"] == "completed"])
        }
        _draw_curves(row[0], done, records)
        row[0].set_title(f"{setting.task}: learning", loc="left", fontweight="bold")
        for axis, key, unit, scale in (
            (row[1], "seconds_per_step_median", "seconds per training step", 1),
            (row[2], "peak_allocated_bytes", "peak memory of a step, MiB", 2**-20),
        ):
            _draw_bars(axis, done, records, key, scale)
            axis.set_xlabel(unit)
            axis.set_title(f"batch {setting.batch_size}", loc="left")
    write_csv(stem.with_suffix(".csv"), records)
    return [stem.with_suffix(".csv"), *save(figure, stem)]


def _draw_curves(
    axis: "Axes", variants: Mapping[str, list[Path]], records: Mapping[Path, Record]
) -> None:
    for name, paths in variants.items():
        style = style_of(name, list(variants))
        for path in paths:
            checks = read_metrics(path)
            seconds = [check["time/train_seconds"] for check in checks]
            percent = [100 * check["val/accuracy"] for check in checks]
            label = name if path == paths[0] else None
            axis.plot(
                seconds, percent, color=style.color, ls=style.line, marker=style.marker, ms=4,
                lw=1.5, label=label,
            )  # fmt: skip
    baselines = [
        100 * records[p]["result"]["test_constant_accuracy"] for v in variants.values() for p in v
    ]
    if baselines:
        axis.axhline(max(baselines), color="#666666", ls=":", lw=1, label="always one class")
    axis.set_xlabel("training seconds")
    axis.set_ylabel("validation accuracy, %")
    if baselines:
        axis.legend(frameon=False, fontsize="small")
    declutter(axis)


def _draw_bars(
    axis: "Axes",
    variants: Mapping[str, list[Path]],
    records: Mapping[Path, Record],
    key: str,
    scale: float,
) -> None:
    for place, (name, paths) in enumerate(variants.items()):
        costs = [records[path]["cost"] for path in paths if records[path]["cost"][key] is not None]
        if not costs:
            continue
        mean = sum(cost[key] for cost in costs) / len(costs) * scale
        axis.barh(place, mean, color=style_of(name, list(variants)).color, height=0.65)
        end = mean
        if key == "seconds_per_step_median" and costs[0]["seconds_per_step_quartiles"][1]:
            quartiles = costs[0]["seconds_per_step_quartiles"]
            axis.plot(quartiles, [place, place], color="black", lw=1.2)
            end = max(mean, quartiles[1])
        axis.annotate(f"{mean:.3g}", (end, place), (6, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(variants)), list(variants))
    axis.invert_yaxis()
    axis.margins(x=0.15)
    declutter(axis)
