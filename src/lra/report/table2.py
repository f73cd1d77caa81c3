"""Table 2: minutes per 1,000 steps and the largest batch, beside the published numbers.

The published time is wall time with evaluation, on one V100 of 16 GB: absolute numbers of other
machines do not compare with it, ratios to Standard do.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lra.benchmark.cells import Cell
from lra.benchmark.steps import (
    PACKED_SUFFIX,
    Measures,
    evaluation_seconds_per_step,
    seconds_per_step,
)
from lra.report.comparison import MISSING
from lra.report.published import SKEINFORMER_ROWS, blocks
from lra.report.rendering import Table, significant
from lra.report.rows import ROWS, TASKS

STANDARD = "softmax"
MINUTES_PER_1000 = 1000 / 60
HEADINGS = (
    "variant",
    "training", "over Standard",
    "with evaluation", "over Standard", "published", "over Standard",
    "over V-Mean", "over padded",
    "batch", "published",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A cell of the paper's Table 2."""

    minutes: float
    batch_size: int


@dataclass(frozen=True)
class Minutes:
    """Minutes per 1,000 steps, of the samples of one session."""

    training: float
    with_evaluation: float | None


def published(task: str) -> dict[str, Published]:
    """The paper's Table 2 for a task, by our names; empty for a task that it does not have."""
    rows = blocks()["skeinformer_table2"]["rows"]
    if task not in TASKS:
        return {}
    found = {name: rows[SKEINFORMER_ROWS[name]] for name in ROWS}
    return {
        name: Published(row[f"{task}_min_per_1k"], int(row[f"{task}_bz"]))
        for name, row in found.items()
    }


def minutes(measures: Measures | None, batch_size: int) -> Minutes | None:
    """From the samples of a cell or of a reference."""
    if measures is None:
        return None
    training = seconds_per_step(measures, batch_size)
    evaluation = evaluation_seconds_per_step(measures)
    whole = None if evaluation is None else (training + evaluation) * MINUTES_PER_1000
    return Minutes(training * MINUTES_PER_1000, whole)


class Row:
    """One variant of one task."""

    def __init__(self, label: str, time: Cell | None, memory: Cell | None) -> None:
        self.label, self.time, self.memory = label, time, memory
        self.ours = self._minutes(None)
        self.standard = self.ours if label == STANDARD else self._minutes(STANDARD)

    def _minutes(self, reference: str | None) -> Minutes | None:
        """Of the cell itself, or of a reference in its session."""
        if self.time is None:
            return None
        measures = self.time["measures"] if reference is None else self._reference(reference)
        return minutes(measures, self.time["batch_size"])

    def _reference(self, reference: str) -> Measures | None:
        assert self.time is not None
        found: Measures | None = self.time["references"].get(reference)
        return found

    def over(self, reference: str) -> float | None:
        """Training time over that of a reference in the same session."""
        other = self._minutes(reference)
        return self.ours.training / other.training if self.ours and other else None

    def padded(self) -> str | None:
        """The same variant with padding, if this one is packed."""
        return None if self.time is None else self.time["padded"]

    def batch(self) -> str:
        """The largest batch; ≈ where it was foretold from smaller ones."""
        if self.memory is None:
            return MISSING
        found = self.memory["measures"]
        if found["batch_size"] is None:
            return "none"
        return ("" if found["is_confirmed"] else "≈ ") + str(found["batch_size"])

    def cells(self, published: Mapping[str, Published]) -> list[str]:
        """The row as text."""
        if self.time is not None and self.time["status"] == "stopped":
            times = ["stopped", *[MISSING] * 3]
        else:
            training, whole = _times(self.ours), _times(self.standard)
            ratios = [_quotient(a, b) for a, b in zip(training, whole, strict=True)]
            times = [_number(training[0]), ratios[0], _number(training[1]), ratios[1]]
        paper, standard = published.get(self.label), published.get(STANDARD)
        padded = self.padded()
        return [
            self.label,
            *times,
            _number(paper.minutes if paper else None),
            _quotient(paper.minutes, standard.minutes) if paper and standard else MISSING,
            _number(self.over("v_mean")),
            MISSING if padded is None else _number(self.over(padded)),
            self.batch(),
            str(paper.batch_size) if paper else MISSING,
        ]


def table(task: str, times: Mapping[Path, Cell], memories: Mapping[Path, Cell]) -> Table:
    """Table 2 of one task."""
    time_cells = {c["label"]: c for c in times.values() if c["task"] == task}
    memory_cells = {c["label"]: c for c in memories.values() if c["task"] == task}
    labels = sorted(time_cells.keys() | memory_cells.keys(), key=place)
    rows = [Row(label, time_cells.get(label), memory_cells.get(label)) for label in labels]
    paper = published(task)
    cells = [*time_cells.values(), *memory_cells.values()]
    return Table(caption(task, cells), HEADINGS, [row.cells(paper) for row in rows])


def caption(task: str, cells: Sequence[Cell]) -> str:
    """What was measured, where, on what data."""
    environment = cells[0]["environment"]
    commits = sorted({str(cell["git"]["commit"])[:10] for cell in cells})
    sources = sorted({cell.get("source_name") or cell["source_kind"] for cell in cells})
    budgets = {cell["config"].get("memory_budget_gib") for cell in cells} - {None}
    changed = sorted({override for cell in cells for override in cell["config"]["overrides"]})
    return (
        f"Table 2, {task}: minutes per 1,000 steps of batch {cells[0]['batch_size']}, and the "
        f"largest batch in {', '.join(f'{gib:g} GiB' for gib in budgets) or MISSING}; "
        f"{', '.join(sources)} data, {environment['device']}, "
        f"{environment['num_threads']} threads, torch {environment['torch']}, "
        f"commit {', '.join([*commits, *changed])}; "
        f"published: one V100 of 16 GB, time with evaluation"
    )


def place(label: str) -> tuple[int, str]:
    """Sorts rows as the paper has them, a packed one after its padded one, the others last."""
    name, known = label.removesuffix(PACKED_SUFFIX), list(ROWS)
    return known.index(name) if name in known else len(known), label


def write_csv(path: Path, times: Mapping[Path, Cell], memories: Mapping[Path, Cell]) -> None:
    """A line a cell, with its session, commit and file."""
    names = ["task", "label", "quantity", "minutes_per_1000_training",
             "minutes_per_1000_with_evaluation", "largest_batch", "is_confirmed", "status",
             "source_kind", "session", "git_commit", "file"]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for quantity, cells in (("time", times), ("memory", memories)):
            for origin, cell in cells.items():
                figures: list[Any] = [None] * 4
                if quantity == "time":
                    figures[:2] = _times(minutes(cell["measures"], cell["batch_size"]))
                else:
                    measures = cell["measures"]
                    figures[2:] = [measures["batch_size"], measures["is_confirmed"]]
                source = [cell["status"], cell["source_kind"], cell["session"]["id"]]
                row = [cell["task"], cell["label"], quantity, *figures, *source]
                values = ["" if value is None else value for value in row]
                writer.writerow([*values, cell["git"]["commit"], origin])


def _times(found: Minutes | None) -> tuple[float | None, float | None]:
    return (None, None) if found is None else (found.training, found.with_evaluation)


def _quotient(ours: float | None, other: float | None) -> str:
    return MISSING if ours is None or not other else significant(ours / other)


def _number(value: float | None) -> str:
    return MISSING if value is None else significant(value)
