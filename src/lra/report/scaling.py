"""From the cells of `scripts/bench_attention.py` to tables."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lra.benchmark.cells import Cell
from lra.benchmark.interleave import quartiles
from lra.report.comparison import MISSING
from lra.report.growth import crossover, fitted_exponent
from lra.report.rendering import Table, significant

STANDARD, FUSED, MEAN = "softmax", "softmax_fused", "v_mean"


@dataclass(frozen=True)
class Quantity:
    """A figure of a cell."""

    key: str
    title: str
    scale: float
    form: Callable[[float], str] = significant

    def value(self, measures: Mapping[str, object] | None) -> float | None:
        """The figure in SI units, the median of samples; None where it was not measured."""
        figure = None if measures is None else measures[self.key]
        if isinstance(figure, list):
            return statistics.median(figure)
        assert figure is None or isinstance(figure, int | float)
        return figure

    def text(self, cell: Cell) -> str:
        """The figure, samples with their quartiles; for a cell that was stopped, "stopped"."""
        if cell["status"] == "stopped":
            return "stopped"
        figure = cell["measures"][self.key]
        if figure is None:
            return MISSING
        if not isinstance(figure, list):
            return self.form(figure * self.scale)
        low, middle, high = (self.form(x * self.scale) for x in quartiles(figure))
        return f"{middle} ({low}–{high})"


FORWARD = Quantity("forward_seconds", "forward, ms", 1e3)
TRAINING = Quantity("training_seconds", "forward and backward, ms", 1e3)
SAVED = Quantity("saved_bytes", "saved for backward, MiB", 2**-20)
FORWARD_PEAK = Quantity("forward_peak_bytes", "peak memory of forward, MiB", 2**-20)
TRAINING_PEAK = Quantity("training_peak_bytes", "peak memory of forward and backward, MiB", 2**-20)
MULTIPLY_ADDS = Quantity("multiply_adds", "million multiply-adds a head, forward", 1e-6)
ERROR = Quantity("error", "relative error against exact attention", 1.0, "{:.3f}".format)
QUANTITIES = (FORWARD, TRAINING, SAVED, FORWARD_PEAK, TRAINING_PEAK, MULTIPLY_ADDS, ERROR)
SPEEDS = (
    (TRAINING, FUSED, "forward and backward: times as fast as SDPA"),
    (TRAINING, STANDARD, "forward and backward: times as fast as written-out softmax"),
    (FORWARD, FUSED, "forward: times as fast as SDPA"),
)
GROWING = (FORWARD, TRAINING, SAVED, FORWARD_PEAK, TRAINING_PEAK)


class Grid:
    """Cells by label and length, in the order in which they are shown."""

    def __init__(self, cells: Mapping[Path, Cell]) -> None:
        first = next(iter(cells.values()))
        self.config, self.environment = first["config"], first["environment"]
        self.cells = {(cell["label"], cell["num_tokens"]): cell for cell in cells.values()}
        self.lengths = sorted({n for _, n in self.cells})
        known = sorted({label for label, _ in self.cells})
        front = [label for label in (STANDARD, FUSED, MEAN) if label in known]
        self.labels = [*front, *(label for label in known if label not in front)]
        self.commits = sorted({str(cell["git"]["commit"])[:10] for cell in cells.values()})

    def figures(self, label: str, quantity: Quantity) -> dict[int, float]:
        """A quantity of one row by length."""
        found = {
            n: quantity.value(self.cells[label, n]["measures"])
            for n in self.lengths
            if (label, n) in self.cells
        }
        return {n: value for n, value in found.items() if value is not None}

    def ratios(self, label: str, reference: str, quantity: Quantity) -> dict[int, float]:
        """A quantity against that of a reference in the same session, by length."""
        return {
            n: ratio
            for n in self.lengths
            if (label, n) in self.cells
            and (ratio := ratio_to(self.cells[label, n], reference, quantity)) is not None
        }

    def setting(self) -> str:
        """What all cells have in common, in words."""
        config, environment = self.config, self.environment
        graph = ", as CUDA graphs" if config.get("cuda_graph") else ""
        return (
            f"b={config['batch_size']}, h={config['num_heads']}, p={config['head_dim']}, "
            f"{config['num_features']} features, {config['padding']:.0%} padding, "
            f"{config['precision']}{graph}; {environment['device']}, {environment['num_threads']} "
            f"threads, torch {environment['torch']}; commit {', '.join(self.commits)}"
        )


def ratio_to(cell: Cell, reference: str, quantity: Quantity) -> float | None:
    """A cell's figure over that of a reference in its session; None without either."""
    ours = quantity.value(cell["measures"])
    theirs = quantity.value(cell["references"].get(reference))
    return None if ours is None or not theirs else ours / theirs


def tables(grid: Grid) -> list[Table]:
    """All tables of a study of cores."""
    return [
        *(by_length(grid, q.title, q.text) for q in QUANTITIES),
        *(by_length(grid, title, partial(times_as_fast, r, q)) for q, r, title in SPEEDS),
        by_length(grid, "forward and backward: time over that of V-Mean", over_v_mean),
        exponents(grid),
        crossovers(grid),
        stops(grid),
    ]


def by_length(grid: Grid, title: str, text: Callable[[Cell], str]) -> Table:
    """A row a variant, a column a length."""
    rows = [
        [
            label,
            *(
                text(grid.cells[label, n]) if (label, n) in grid.cells else MISSING
                for n in grid.lengths
            ),
        ]
        for label in grid.labels
    ]
    return Table(title, ["n", *(f"{n:,}" for n in grid.lengths)], rows)


def exponents(grid: Grid) -> Table:
    """How each quantity grows."""
    rows = [
        [label, *(_number(fitted_exponent(grid.figures(label, q)), ".2f") for q in GROWING)]
        for label in grid.labels
    ]
    title = "exponent of n, fitted from 1,024 tokens up"
    return Table(title, ["", *(q.title.partition(",")[0] for q in GROWING)], rows)


def crossovers(grid: Grid) -> Table:
    """From which length on each variant needs less than SDPA."""
    quantities = (FORWARD, TRAINING, FORWARD_PEAK, TRAINING_PEAK, SAVED)
    labels = [label for label in grid.labels if label != FUSED]
    rows = [
        [label, *(str(crossover(grid.ratios(label, FUSED, q)) or MISSING) for q in quantities)]
        for label in labels
    ]
    title = "from which n on a variant needs less than exact attention through SDPA"
    return Table(title, ["", *(q.title.partition(",")[0] for q in quantities)], rows)


def stops(grid: Grid) -> Table:
    """What was not measured, and why."""
    rows = [
        [label, f"{n:,}", cell["reason"]]
        for (label, n), cell in sorted(grid.cells.items())
        if cell["status"] == "stopped"
    ]
    return Table("stopped", ["variant", "n", "why"], rows, words=(0, 1, 2))


def peer_table(grid: Grid) -> Table:
    """Our variants over public implementations: below 1, ours need less."""
    quantities = (FORWARD, TRAINING, SAVED, FORWARD_PEAK, TRAINING_PEAK)
    rows = [
        [
            label,
            f"{n:,}",
            *(_number(_ours_over_peer(grid.cells[label, n], q), ".2f") for q in quantities),
        ]
        for label in grid.labels
        for n in grid.lengths
        if (label, n) in grid.cells
    ]
    title = "ours over the public implementation, in turns in one process; below 1, ours need less"
    return Table(title, ["", "n", *(q.title.partition(",")[0] for q in quantities)], rows)


def _ours_over_peer(cell: Cell, quantity: Quantity) -> float | None:
    [ours] = cell["references"] or [""]
    ratio = ratio_to(cell, ours, quantity)
    return 1 / ratio if ratio else None


def times_as_fast(reference: str, quantity: Quantity, cell: Cell) -> str:
    """Time of a reference over that of the cell, as text."""
    ratio = ratio_to(cell, reference, quantity)
    return _number(1 / ratio if ratio else None, ".2f")


def over_v_mean(cell: Cell) -> str:
    """Time of a training step over that of V-Mean, as text."""
    return _number(ratio_to(cell, MEAN, TRAINING), ".2f")


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)
