"""Table 1, test accuracy of every variant on every task, as values."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lra.record import Record
from lra.report.conditions import Conditions, Recipe
from lra.report.rows import TASKS
from lra.report.statistics import Correct, Interval, accuracy_interval

AVERAGE = "average"
Runs = Mapping[Path, Record]


@dataclass(frozen=True)
class Score:
    """An accuracy (fraction) over seeds."""

    by_seed: Mapping[int, float]
    mean: float
    sd: float | None
    """Sample standard deviation over seeds; None for one seed."""
    interval: Interval | None
    """95 %."""

    @classmethod
    def of(cls, by_seed: Mapping[int, float], count: int) -> "Score":
        """Over the seeds of a cell whose accuracies are shares of `count` examples."""
        values = list(by_seed.values())
        sd = statistics.stdev(values) if len(values) > 1 else None
        return cls(by_seed, statistics.fmean(values), sd, accuracy_interval(values, count))


@dataclass(frozen=True)
class Cell:
    """One variant on one task."""

    runs: Mapping[Path, Record]
    """All of them, by seed."""
    score: Score | None
    """Of those that are completed."""
    correct: Correct | None
    """Their right answers, a row a seed; None where a run has not kept them."""
    states: Mapping[str, int]
    """What became of the others, a failure by its type, and how many."""


@dataclass(frozen=True)
class Column:
    """One task, or what stands in for it."""

    name: str
    """What its runs are filed under."""
    recipe: Recipe | None
    """None where nothing was run."""
    num_examples: int | None
    """Test examples; None before any run is completed."""
    constant_accuracy: float | None
    """Of always answering the most frequent class."""

    @property
    def heading(self) -> str:
        """The paper's name of the task; of a stand-in, its own."""
        if self.recipe is None:
            return TASKS[self.name]
        if self.recipe.is_stand_in:
            return f"{self.recipe.source_name} (stand-in)"
        label = TASKS.get(self.name, self.name)
        return f"{label} *" if self.recipe.overrides else label

    @property
    def published_task(self) -> str | None:
        """The task whose published results may stand beside it: none beside a stand-in."""
        if self.recipe is not None and (self.recipe.is_stand_in or self.recipe.task != self.name):
            return None
        return self.name if self.name in TASKS else None


@dataclass(frozen=True)
class AccuracyTable:
    """Rows of the paper, then others; columns of the paper, then others."""

    conditions: Conditions
    columns: Sequence[Column]
    rows: Mapping[str, str]
    """Variant and label."""
    cells: Mapping[tuple[str, str], Cell]
    """By variant and column; only where there are runs."""
    averages: Mapping[str, Score]
    """Of variants that are completed on all five tasks: the plain mean of the five accuracies."""
    best: Mapping[str, frozenset[str]]
    """By column, `average` included: the best variant and those that cannot be told from it."""
    untested: Mapping[str, frozenset[str]]
    """By column: variants whose right answers were not kept, so that nothing can be said."""
    remarks: Sequence[str]

    @property
    def constant_average(self) -> float | None:
        """Of always answering one class, over the five tasks; None where one is missing."""
        five = [c for c in self.columns if c.recipe is not None and c.recipe.family]
        values = [c.constant_accuracy for c in five if c.constant_accuracy is not None]
        return statistics.fmean(values) if len(values) == len(five) == len(TASKS) else None

    @property
    def runs(self) -> Runs:
        """All runs of the table."""
        return {path: run for cell in self.cells.values() for path, run in cell.runs.items()}
