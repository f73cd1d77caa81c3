"""Figures against the length, both axes in logarithms."""

from collections.abc import Mapping
from pathlib import Path

from lra.report.growth import fitted_exponent
from lra.report.style import style_of

Curves = Mapping[str, Mapping[int, float]]


def draw_scaling(stem: Path, panels: Mapping[str, Curves], setting: str) -> None:
    """`stem`.pdf and `stem`.png: a panel a quantity, a curve a variant with its exponent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(panels), 5.4), dpi=120, layout="constrained")
    for axis, (title, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for label, figures in curves.items():
            positive = {n: value for n, value in figures.items() if value > 0}
            if not positive:
                continue
            color, marker, line = style_of(label, list(curves))
            axis.loglog(
                list(positive), list(positive.values()), base=2,
                color=color, marker=marker, ls=line, ms=4, lw=1.3, label=_legend(label, positive),
            )  # fmt: skip
        axis.set_xlabel("n, tokens")
        axis.set_title(title, loc="left")
        axis.set_yscale("log", base=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#dddddd", lw=0.6)
        axis.legend(
            frameon=False, fontsize="x-small", ncols=2, loc="upper left", bbox_to_anchor=(0, -0.12)
        )
    figure.supxlabel(setting, fontsize="x-small")
    for suffix in (".pdf", ".png"):
        figure.savefig(stem.with_suffix(suffix))


def _legend(label: str, figures: Mapping[int, float]) -> str:
    exponent = fitted_exponent(figures)
    return label if exponent is None else f"{label}, n^{exponent:.2f}"
