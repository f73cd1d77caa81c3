"""Sessions of cores in turns, one a length; each row of a length becomes a cell on disk."""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lra.benchmark.budget import Budget, Footprint, objection
from lra.benchmark.cells import Cell, CellStore, new_session
from lra.benchmark.cores import Candidate, CoreRun, Workload, exact_attention, peak_bytes
from lra.benchmark.interleave import interleave, num_rounds_within, stopwatch

FEWEST_ROUNDS = 3
NUM_WARMUP_ROUNDS = 1
FEWEST_PASSES = FEWEST_ROUNDS + NUM_WARMUP_ROUNDS + 2
"""Rounds that a cell takes at least, what is counted beside the clock included."""
FIRST_TRIAL_TOKENS = 512

Measures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A candidate, and the labels of what it is compared with in the same session."""

    candidate: Candidate
    references: tuple[str, ...]


class Scaling:
    """Fills the cells of a store: rows × lengths."""

    def __init__(
        self,
        store: CellStore,
        rows: Sequence[Row],
        *,
        others: Sequence[Candidate],
        budget: Budget,
        num_rounds: int,
        error_limit: int,
    ) -> None:
        """`others` are candidates that rows refer to without being rows themselves."""
        self.store = store
        self.rows = rows
        self.candidates = {c.label: c for c in (*others, *(row.candidate for row in rows))}
        self.budget = budget
        self.num_rounds = num_rounds
        self.error_limit = error_limit
        self.trials: dict[str, list[Footprint]] = {}

    def fill(self, workload: Workload) -> int:
        """Measure what is missing at one length, in one session; the number of new cells."""
        n = workload.num_tokens
        missing = [row for row in self.rows if self._is_missing(row, workload)]
        if not missing:
            return 0
        wanted = dict.fromkeys(row.candidate.label for row in missing)
        wanted |= dict.fromkeys(label for row in missing for label in row.references)
        stops = {label: self.reason_to_stop(label, workload) for label in wanted}
        measured = self.measure([label for label in wanted if not stops[label]], workload, stops)
        session = new_session()
        for row in missing:
            label = row.candidate.label
            cell: Cell = {
                "label": label,
                "num_tokens": n,
                "session": session,
                "status": "measured" if label in measured else "stopped",
                "reason": stops[label],
                "measures": measured.get(label),
                "references": {ref: measured[ref] for ref in row.references if ref in measured},
            }
            self.store.write(cell, length_key(n), label)
        return len(missing)

    def reason_to_stop(self, label: str, workload: Workload) -> str | None:
        """Why a candidate is not measured at this length, judging from smaller ones."""
        n = workload.num_tokens
        known = self.footprints(label, n) or self.trials.get(label, [])
        while not known or known[-1].num_tokens * 2 < n:
            trial_tokens = known[-1].num_tokens * 2 if known else FIRST_TRIAL_TOKENS
            if trial_tokens >= n or objection(known, trial_tokens, self.budget, FEWEST_PASSES):
                break
            trial = footprint_of(self.candidates[label], replace(workload, num_tokens=trial_tokens))
            known = [*known, trial]
            self.trials[label] = known
        return objection(known, n, self.budget, FEWEST_PASSES)

    def footprints(self, label: str, num_tokens: int) -> list[Footprint]:
        """Of the cells at smaller lengths."""
        lengths = sorted(int(path.name.removeprefix("n_")) for path in self.store.root.glob("n_*"))
        found = [self.store.find(length_key(n), label) for n in lengths if n < num_tokens]
        return [
            Footprint(
                cell["num_tokens"],
                sum(statistics.median(cell["measures"][key]) for key in SECONDS),
                cell["measures"]["training_peak_bytes"],
            )
            for cell in found
            if cell is not None and cell["status"] == "measured"
        ]

    def measure(
        self, labels: Sequence[str], workload: Workload, stops: dict[str, str | None]
    ) -> dict[str, Measures]:
        """Measure candidates in turns; one without memory for it goes to `stops`."""
        clock = stopwatch(workload.device)
        runs: dict[str, CoreRun] = {}
        timed: dict[str, dict[str, Callable[[], object]]] = {}
        slowest = 0.0
        for label in labels:
            try:
                run = CoreRun(self.candidates[label], workload)
                turns = run.timed()
                slowest = max(slowest, sum(map(clock, turns.values())))
            except torch.OutOfMemoryError:
                stops[label] = "out of memory"
            else:
                runs[label], timed[label] = run, turns
        num_rounds = num_rounds_within(
            self.budget.seconds, slowest, fewest=FEWEST_ROUNDS, most=self.num_rounds
        )
        samples = interleave(
            timed,
            num_rounds=num_rounds,
            num_warmup=NUM_WARMUP_ROUNDS,
            clock=clock,
        )
        counts = {label: self.count(run, workload) for label, run in runs.items()}
        errors = self.errors(runs, workload)
        return {
            label: {**samples[label], **counts[label], "error": errors.get(label)} for label in runs
        }

    def count(self, run: CoreRun, workload: Workload) -> Measures:
        """What does not depend on the clock."""
        return {
            "forward_peak_bytes": peak_bytes(run.infer, workload.device),
            "training_peak_bytes": peak_bytes(run.train, workload.device),
            "saved_bytes": run.saved_bytes(),
            "multiply_adds": run.multiply_adds(),
        }

    def errors(self, runs: Mapping[str, CoreRun], workload: Workload) -> dict[str, float]:
        """Relative errors against exact attention, up to `error_limit` tokens."""
        if workload.num_tokens > self.error_limit:
            return {}
        exact = {}
        for run in runs.values():
            if run.shares_qk not in exact:
                exact[run.shares_qk] = exact_attention(*run.inputs, run.token_mask)
        return {label: run.error(exact[run.shares_qk]) for label, run in runs.items()}

    def _is_missing(self, row: Row, workload: Workload) -> bool:
        """Whether there is no cell, or one that lacks what the budget now allows."""
        cell = self.store.find(length_key(workload.num_tokens), row.candidate.label)
        if cell is None or cell["status"] == "stopped":
            return True
        absent = [label for label in row.references if label not in cell["references"]]
        return any(self.reason_to_stop(label, workload) is None for label in absent)


SECONDS = ("forward_seconds", "training_seconds")


def length_key(num_tokens: int) -> str:
    """The folder of a length; in order of their names, lengths grow."""
    return f"n_{num_tokens:06d}"


def footprint_of(candidate: Candidate, workload: Workload) -> Footprint:
    """Of a single round at a small length."""
    clock = stopwatch(workload.device)
    run = CoreRun(candidate, workload)
    run.train()
    seconds = clock(run.infer) + clock(run.train)
    peak = peak_bytes(run.train, workload.device)
    del run
    gc.collect()
    return Footprint(workload.num_tokens, seconds, peak)
