"""The report page: one HTML file that holds a study, from its tables down to every record."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from omegaconf import OmegaConf
from plotly.offline import get_plotlyjs

from lra.paths import CONF_DIR
from lra.record import Record
from lra.report import curves
from lra.report.accuracy import AccuracyTable, Column, Runs
from lra.report.accuracy_grid import caption, grid, states
from lra.report.accuracy_tables import accuracy_tables
from lra.report.attachments import attach
from lra.report.published import Published

PROTOCOLS = ("clean", "paper")


@dataclass(frozen=True)
class TableCell:
    """Text, whether it is among the best, what to sort it by, and where its runs are described."""

    text: str
    is_best: bool
    key: float | None
    anchor: str | None


def build_page(
    study: str, runs: Runs, beside: Sequence[Published], attachments: Sequence[Path]
) -> str:
    """The page as text; it needs no network.

    Raises ValueError as `accuracy_tables` and `attach` do.
    """
    environment = Environment(
        loader=PackageLoader("lra.report", "."), autoescape=True, undefined=StrictUndefined
    )
    tables = accuracy_tables(runs)
    return environment.get_template("page.html").render(
        study=study,
        plotly=Markup(get_plotlyjs()),
        states=_count_states(runs),
        hardware=sorted({str(run["environment"]["device"]) for run in runs.values()}),
        switches=_switches(runs),
        sections=[_section(table, beside, number) for number, table in enumerate(tables)],
        attachments=[attach(path) for path in attachments],
    )


def _section(table: AccuracyTable, beside: Sequence[Published], number: int) -> dict[str, Any]:
    headings, rows = linked_grid(table, beside, number)
    return {
        "conditions": str(table.conditions),
        "headings": headings,
        "rows": rows,
        "caption": caption(table, beside),
        "pictures": [
            {
                "heading": column.heading,
                "curves": Markup(html) if (html := curves.learning_curves(table, column)) else None,
                "tradeoff": Markup(html) if (html := curves.tradeoff(table, column)) else None,
            }
            for column in table.columns
            if column.recipe is not None
        ],
        "data": [_data(column) for column in table.columns if column.recipe is not None],
        "cells": list(_described_cells(table, number)),
    }


def linked_grid(
    table: AccuracyTable, beside: Sequence[Published], number: int
) -> tuple[list[str], list[list[TableCell]]]:
    """Table 1 with links from its cells to their runs."""
    headings, sections = grid(table, beside)
    place: dict[str, int] = {}
    for column in table.columns:  # in this order; two stand-ins may have one name
        place[column.name] = headings.index(column.heading, max(place.values(), default=1) + 1)
    anchors = {
        (row, place[column]): _anchor(number, variant, column)
        for row, variant in enumerate(table.rows)  # the first rows, in this order
        for column in place
        if (variant, column) in table.cells
    }
    texts = [row for section in sections for row in section]
    rows = [
        [_cell(text, anchors.get((i, j))) for j, text in enumerate(row)]
        for i, row in enumerate(texts)
    ]
    return headings, rows


def _cell(text: str, anchor: str | None) -> TableCell:
    number = re.match(r"\**(-?\d+(?:\.\d+)?)", text)
    key = float(number[1]) if number else None
    return TableCell(text.replace("**", ""), text.startswith("**"), key, anchor)


def _anchor(number: int, variant: str, column: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", f"runs-{number}-{column}-{variant}")


def _described_cells(table: AccuracyTable, number: int) -> Iterator[dict[str, Any]]:
    for (variant, name), cell in table.cells.items():
        [heading] = [column.heading for column in table.columns if column.name == name]
        yield {
            "anchor": _anchor(number, variant, name),
            "heading": f"{heading}: {table.rows[variant]}",
            "pending": states(cell),
            "runs": [_described_run(path, run) for path, run in cell.runs.items()],
        }


def _described_run(path: Path, run: Record) -> dict[str, Any]:
    failure = run["failure"]
    return {
        "directory": str(path),
        "seed": run["seed"],
        "status": run["status"],
        "failure": f"{failure['type']}: {failure['message']}" if failure else None,
        "command": run["command"],
        "commit": f"{run['git']['commit']}{' with changes' if run['git']['dirty'] else ''}",
        "data": f"{run['data']['source_kind']}, sha256 {run['data']['sha256']}",
        "device": run["environment"]["device"],
        "config": OmegaConf.to_yaml(run["config"]),
        "record": json.dumps({k: v for k, v in run.items() if k != "config"}, indent=1),
    }


def _data(column: Column) -> dict[str, Any]:
    recipe = column.recipe
    assert recipe is not None
    return {
        "heading": column.heading,
        "kind": recipe.source_kind,
        "name": recipe.source_name or "",
        "sha256": recipe.sha256,
        "overrides": " ".join(recipe.overrides),
        "num_examples": column.num_examples,
    }


def _switches(runs: Runs) -> list[dict[str, Any]]:
    """Every switch: its value in each protocol, and in the runs."""
    loaded = {
        name: OmegaConf.load(CONF_DIR / f"protocol/{name}.yaml").protocol for name in PROTOCOLS
    }
    used: dict[str, set[str]] = {}
    for run in runs.values():
        for key, value in run["config"]["protocol"].items():
            used.setdefault(key, set()).add(str(value))
    return [
        {
            "key": key,
            "values": [str(loaded[name][key]) for name in PROTOCOLS],
            "used": ", ".join(sorted(used.get(key, {"—"}))),
        }
        for key in loaded["clean"]
    ]


def _count_states(runs: Runs) -> str:
    states = [run["status"] for run in runs.values()]
    return ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
