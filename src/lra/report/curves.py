"""Interactive pictures of the report page: learning curves, and accuracy against time."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from lra.report.accuracy import AccuracyTable, Column
from lra.report.records import read_metrics
from lra.report.style import style_of
from lra.report.tradeoff import tradeoff_rows

SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down",
    "P": "cross", "X": "x", "h": "hexagon", ">": "triangle-right", "<": "triangle-left",
    "p": "pentagon", "*": "star", "d": "diamond-tall", "H": "hexagon2", "8": "octagon",
}  # fmt: skip
"""Plotly's names of matplotlib's markers."""
DASHES = ("solid", "dash", "dashdot", "dot")
LINE_LIKE_TEXT = "#888888"
"""Readable on white and on black."""


def learning_curves(table: AccuracyTable, column: Column) -> str | None:
    """Validation loss against training time, a line a run, as HTML; None without checks."""
    figure = go.Figure()
    variants = list(table.rows)
    for variant in variants:
        cell = table.cells.get((variant, column.name))
        runs = {} if cell is None else cell.runs
        for path, record in runs.items():
            checks = read_metrics(path)
            if not checks:
                continue
            figure.add_scatter(
                x=[check["time/train_seconds"] for check in checks],
                y=[check["val/loss"] for check in checks],
                customdata=[[c["step"], 100 * c["val/accuracy"]] for c in checks],
                hovertemplate="step %{customdata[0]}, %{x:.0f} s<br>validation loss %{y:.4f}, "
                "accuracy %{customdata[1]:.2f} %",
                name=table.rows[variant].removeprefix("· ") + _seed(record, len(runs)),
                mode="lines+markers",
                **_look(variant, variants),
            )
    if not figure.data:
        return None
    return _html(figure, "seconds of training", "validation loss, nats", log_x=False)


def tradeoff(table: AccuracyTable, column: Column) -> str | None:
    """Test accuracy against the time of a step; the area is the peak memory. None without runs."""
    variants = list(table.rows)
    rows = tradeoff_rows(table, column, variants)
    if not rows:
        return None
    figure = go.Figure()
    largest = max(row["peak_allocated_bytes"] for row in rows)
    for row in rows:
        look = _look(row["variant"], variants)
        look["marker"] |= {
            "size": 60 * (row["peak_allocated_bytes"] / largest) ** 0.5,
            "opacity": 0.5,
        }
        figure.add_scatter(
            x=[row["seconds_per_step"]],
            y=[100 * row["accuracy"]],
            name=row["label"].removeprefix("· "),
            mode="markers",
            marker=look["marker"],
            hovertemplate="%{x:.3g} s a step, %{y:.2f} %, "
            f"{row['peak_allocated_bytes'] / 2**20:,.0f} MiB",
        )
    return _html(figure, "seconds a training step", "test accuracy, %", log_x=True)


def _look(variant: str, variants: Sequence[str]) -> dict[str, Any]:
    style = style_of(variant, variants)
    dash = DASHES[0] if style.line == "-" else DASHES[len(style.line[1]) % len(DASHES)]
    marker = {"symbol": SYMBOLS[style.marker], "size": 7}
    if style.color != "#000000":  # black would vanish on a dark page
        marker["color"] = style.color
        return {"line": {"color": style.color, "dash": dash}, "marker": marker}
    color = LINE_LIKE_TEXT
    return {"line": {"color": color, "dash": dash}, "marker": {**marker, "color": color}}


def _seed(record: dict[str, Any], count: int) -> str:
    return f", seed {record['seed']}" if count > 1 else ""


def _html(figure: go.Figure, x_title: str, y_title: str, *, log_x: bool) -> str:
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
    figure.update_layout(
        xaxis={**axis, "title": x_title, "type": "log" if log_x else "linear"},
        yaxis={**axis, "title": y_title},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": LINE_LIKE_TEXT, "size": 13},
        margin={"l": 60, "r": 10, "t": 40, "b": 50},
        height=480,  # the legend of sixteen rows
        modebar={"bgcolor": "rgba(0,0,0,0)"},
        hovermode="closest",
        showlegend=True,
    )
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return html
