"""Pictures of a study, readable in black and white and by color-blind people."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lra.approximation.published import published_errors
from lra.approximation.summary import Row
from lra.report.style import style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Abscissa:
    """What errors are drawn over."""

    suffix: str
    label: str
    value: Callable[[Row], float | None]
    """None for a variant that has no such value: a horizontal line."""
    log_base: int | None
    is_relative: bool
    """Whether errors are divided by ‖BV‖₂."""


FEATURES = Abscissa("", "features d, as they came out", lambda r: r.effective_features, 2, False)
COST = Abscissa("-cost", "multiply-adds a head", lambda row: row.multiply_adds or None, 10, False)
TEMPERATURE = Abscissa("-temperature", "factor on the scores", lambda r: r.temperature, 2, True)
TRAINING = Abscissa("-training", "training step", lambda row: row.step, None, True)


def draw_pictures(stem: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw what there is to show, each as PDF and PNG; returns the PNGs.

    Error over the number of features, as in the paper, and over multiply-adds; at the largest
    number of features, over temperature and over training steps where there are several. A picture
    without a single point is left out.
    """
    base = [row for row in rows if row.temperature == rows[0].temperature]
    largest = max((row.num_features or 0 for row in rows), default=0)
    at_largest = [row for row in rows if row.num_features in (None, largest)]
    trained = [row for row in at_largest if row.step is not None and row in base]
    pictures = [(FEATURES, base), (COST, base)]
    if len({row.temperature for row in rows}) > 1:
        pictures.append((TEMPERATURE, at_largest))
    if len({row.step for row in trained}) > 1:
        pictures = [(TRAINING, sorted(trained, key=lambda row: row.step or 0))]
    return [
        draw(stem, abscissa, chosen, largest)
        for abscissa, chosen in pictures
        if any(abscissa.value(row) is not None for row in chosen)
    ]


def draw(stem: Path, abscissa: Abscissa, rows: Sequence[Row], num_features: int) -> Path:
    """A panel for each source and length: mean error ± a standard error."""
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(row.model_family for row in rows))
    lengths = sorted({row.num_tokens for row in rows})
    names = list(dict.fromkeys(row.attention for row in rows))
    size = (4.6 * len(lengths) + 1.8, 3.4 * len(sources) + 0.3)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(len(sources), len(lengths), squeeze=False)
    ending = f", d = {num_features}" if abscissa.is_relative else ""
    for source, line in zip(sources, grid, strict=True):
        for num_tokens, axis in zip(lengths, line, strict=True):
            panel = [r for r in rows if r.model_family == source and r.num_tokens == num_tokens]
            draw_panel(axis, abscissa, panel, names)
            axis.set_title(f"{source}, n = {num_tokens}{ending}", loc="left", fontsize="small")
    add_legend(figure, list(grid.flat))
    path = stem.with_name(f"{stem.name}{abscissa.suffix}.png")
    figure.savefig(path)
    figure.savefig(path.with_suffix(".pdf"))
    return path


def draw_panel(axis: "Axes", abscissa: Abscissa, rows: Sequence[Row], names: Sequence[str]) -> None:
    """The variants of one panel, over what was published."""
    for name in dict.fromkeys(row.attention for row in rows):
        curve = [row for row in rows if row.attention == name]
        color, marker, line = style_of(name, names)
        estimates = [row.relative if abscissa.is_relative else row.spectral for row in curve]
        heights = [estimate.mean for estimate in estimates]
        at = [value for row in curve if (value := abscissa.value(row)) is not None]
        if len(at) < len(curve):
            axis.axhline(heights[0], color=color, ls=line, lw=1.4, label=name)
        else:
            errors = [estimate.standard_error for estimate in estimates]
            axis.errorbar(
                at, heights, errors, color=color, ls=line, lw=1.4, marker=marker, ms=5, label=name
            )
        if abscissa is FEATURES:
            draw_published(axis, curve[0], color, marker)
    if abscissa.log_base is not None:
        axis.set_xscale("log", base=abscissa.log_base)
    if abscissa.log_base == 2:
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yscale("log")
    axis.set_xlabel(abscissa.label)
    axis.set_ylabel("‖BV − R‖₂ / ‖BV‖₂" if abscissa.is_relative else "‖BV − R‖₂")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#dddddd", lw=0.6)


def draw_published(axis: "Axes", row: Row, color: str, marker: str) -> None:
    """The paper's points of a variant as faint hollow marks, where it has them."""
    points = published_errors(row, row.attention)
    if points:
        axis.plot(
            list(points), list(points.values()), ls="", marker=marker, ms=8, mfc="none",
            mec=color, alpha=0.45, label="hollow: published",
        )  # fmt: skip


def add_legend(figure: "Figure", axes: Sequence["Axes"]) -> None:
    """One legend beside the panels, every name once, what was published last."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    names = sorted(entries, key=lambda name: name.startswith("hollow"))
    figure.legend(
        [entries[name] for name in names],
        names,
        loc="outside right upper",
        frameon=False,
        fontsize="small",
    )
