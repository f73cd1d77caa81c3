"""How far a study is, and how long the rest may take."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from lra.record import Record
from lra.study.plan import Job, State, state_of

Variant = tuple[str, str]
"""Task and attention."""


@dataclass(frozen=True)
class Survey:
    """Every run of a study with its state."""

    jobs: Sequence[Job]
    states: Sequence[State]
    records: Sequence[Record | None]

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> "Survey":
        """Read the run directories."""
        found = [state_of(job) for job in jobs]
        return cls(jobs, [state for state, _ in found], [record for _, record in found])

    def counts(self) -> dict[State, int]:
        """How many runs are in each state."""
        return dict(Counter(self.states))

    def seconds_left(self) -> tuple[float, int]:
        """Seconds of computing for what is unfinished, and how many runs no one can tell of.

        A run is expected to take what its variant took with other seeds.
        """
        known = expected_seconds(self.records)
        unfinished = [
            job.variant
            for job, state in zip(self.jobs, self.states, strict=True)
            if state in ("missing", "paused", "interrupted", "running")
        ]
        told = [known[variant] for variant in unfinished if variant in known]
        return sum(told), len(unfinished) - len(told)

    def to_markdown(self) -> str:
        """A row a variant, a column a task: how many of its runs are completed, and what else."""
        cells: Mapping[Variant, Counter[State]] = defaultdict(Counter)
        for job, state in zip(self.jobs, self.states, strict=True):
            cells[job.variant][state] += 1
        tasks = list(dict.fromkeys(task for task, _ in cells))
        names = list(dict.fromkeys(name for _, name in cells))
        rows = [[name, *(_cell(cells[task, name]) for task in tasks)] for name in names]
        return tabulate(rows, ["", *tasks], "github", disable_numparse=True)

    def failures(self) -> Iterable[str]:
        """One line for each failed run."""
        for job, state, record in zip(self.jobs, self.states, self.records, strict=True):
            if state == "failed" and record is not None:
                failure = record["failure"]
                yield f"{job.label}: {failure['type']}: {failure['message']}"
            if state == "other":
                yield f"{job.label}: its directory holds a run with another configuration"


def expected_seconds(records: Iterable[Record | None]) -> dict[Variant, float]:
    """Median seconds of training, validation and test of the completed runs of each variant."""
    seconds: Mapping[Variant, list[float]] = defaultdict(list)
    for record in records:
        if record is not None and record["status"] == "completed":
            cost = record["cost"]
            total = cost["train_seconds"] + cost["eval_seconds"] + cost["test_seconds"]
            seconds[record["task"], record["attention"]].append(total)
    return {variant: statistics.median(values) for variant, values in seconds.items()}


def _cell(states: "Counter[State]") -> str:
    total = sum(states.values())
    others = [
        f"{n} {state}" for state, n in states.items() if state not in ("completed", "missing")
    ]
    return ", ".join([f"{states['completed']}/{total}", *others])
