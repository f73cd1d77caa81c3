"""How figures look: readable in black and white and by colour-blind people."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lra.report.rows import ROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GRAY, WINE = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#777777",
    "#882255",
)  # fmt: skip
"""Okabe and Ito's palette, gray in place of its yellow, which is pale on white; Tol's wine."""


class Style(NamedTuple):
    """Color, marker and line of a variant: any two of ours differ in marker or line."""

    color: str
    marker: str
    line: Any


SOLID, DASHED, DASH_DOT, DOTTED = "-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (1, 1.5))
FAMILIES = {
    "skeinformer": Style(BLUE, "o", SOLID),
    "softmax": Style(BLACK, "s", SOLID),
    "nystromformer": Style(GREEN, "^", DASHED),
    "bigbird": Style(ORANGE, "D", DASH_DOT),
    "performer": Style(VERMILLION, "v", DOTTED),
    "linformer": Style(PURPLE, "P", DASHED),
    "informer": Style(SKY, "X", DASH_DOT),
    "reformer": Style(GRAY, "h", SOLID),
    "v_mean": Style(WINE, ">", DASHED),
}
"""The eight of the paper's Figure 2, and V-Mean."""
OTHER_MARKERS = ("<", "p", "*", "d", "H", "8")


def style_of(variant: str, variants: Sequence[str]) -> Style:
    """The paper's methods always look the same; an ablation has its family's color.

    A variant without a family takes the next color and marker of its place among the others.
    """
    if variant in FAMILIES:
        return FAMILIES[variant]
    others = [name for name in [*ROWS, *variants] if name not in FAMILIES]
    place = list(dict.fromkeys(others)).index(variant)
    family = next((style for name, style in FAMILIES.items() if variant.startswith(name)), None)
    colors = [style.color for style in FAMILIES.values()]
    color = family.color if family else colors[place % len(colors)]
    repeat, shape = divmod(place, len(OTHER_MARKERS))
    return Style(color, OTHER_MARKERS[shape], (DASHED, DASH_DOT, DOTTED)[repeat % 3])


def declutter(axis: "Axes") -> None:
    """No box, a faint grid behind what is drawn."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)


def log_scale(axis: "Axes") -> None:
    """A logarithmic x axis with plain numbers at 1, 2 and 5; at powers of ten where it is long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    subs = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    axis.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def legend_below(figure: "Figure", axes: Iterable["Axes"], labels: Sequence[str]) -> None:
    """One legend for all panels, in the order of `labels`; those that no panel has are left out."""
    handles: dict[str, Any] = {}
    for axis in axes:
        found, names = axis.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    shown = [label for label in labels if label in handles]
    figure.legend(
        [handles[label] for label in shown], shown, loc="outside lower center",
        ncols=max(2, int(figure.get_figwidth() / 3)), frameon=False, fontsize="small",
        handlelength=3.5,
    )  # fmt: skip


def save(figure: "Figure", stem: Path) -> list[Path]:
    """Write a drawing as PDF and PNG; return the files."""
    pdf, png = stem.with_suffix(".pdf"), stem.with_suffix(".png")
    figure.savefig(pdf, metadata={"CreationDate": None})
    figure.savefig(png, dpi=150)
    return [pdf, png]


def save_with_rows(
    figure: "Figure", stem: Path, rows: Sequence[Mapping[str, object]]
) -> list[Path]:
    """Write what is drawn as CSV, and the drawing as PDF and PNG; return the files."""
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return [stem.with_suffix(".csv"), *save(figure, stem)]
