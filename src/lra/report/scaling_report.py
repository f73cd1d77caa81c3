"""Tables and pictures of `scripts/bench_attention.py`, on disk."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from lra.benchmark.cells import Cell
from lra.files import write_text
from lra.report.rendering import Table
from lra.report.scaling import (
    QUANTITIES,
    SAVED,
    TRAINING,
    TRAINING_PEAK,
    Grid,
    peer_table,
    stops,
    tables,
)
from lra.report.scaling_figures import draw_scaling


def write_csv(path: Path, cells: Mapping[Path, Cell]) -> None:
    """A line a cell, in SI units, with its session, commit and file."""
    keys = [quantity.key for quantity in QUANTITIES]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["label", "num_tokens", "status", *keys, "session", "device", "git_commit", "file"]
        )
        for origin, cell in cells.items():
            values = [quantity.value(cell["measures"]) for quantity in QUANTITIES]
            identity = [cell["label"], cell["num_tokens"], cell["status"]]
            device = cell["environment"]["device"]
            source = [cell["session"]["id"], device, cell["git"]["commit"], origin]
            writer.writerow([*identity, *("" if v is None else v for v in values), *source])


def write_report(out: Path, cells: Mapping[Path, Cell], peers: Mapping[Path, Cell]) -> str:
    """Write CSV, Markdown, LaTeX and pictures to `out`; return the Markdown."""
    grid = Grid(cells)
    sections = [(grid, tables(grid))]
    write_csv(out / "cores.csv", cells)
    if peers:
        peer_grid = Grid(peers)
        sections.append((peer_grid, [peer_table(peer_grid), stops(peer_grid)]))
        write_csv(out / "peers.csv", peers)
    markdown, latex = [], []
    for part, shown in sections:
        markdown += [f"{part.setting()}\n", *(t.markdown() for t in _filled(shown))]
        latex += [f"% {part.setting()}\n", *(t.latex() for t in _filled(shown))]
    write_text(out / "cores.md", "\n".join(markdown))
    write_text(out / "cores.tex", "\n".join(latex))
    panels = {
        q.title: {label: _scaled(grid.figures(label, q), q.scale) for label in grid.labels}
        for q in (TRAINING, SAVED, TRAINING_PEAK)
    }
    draw_scaling(out / "cores", panels, grid.setting())
    return "\n".join(markdown)


def _filled(shown: Sequence[Table]) -> list[Table]:
    return [table for table in shown if table.rows]


def _scaled(figures: Mapping[int, float], scale: float) -> dict[int, float]:
    return {n: figure * scale for n, figure in figures.items()}
