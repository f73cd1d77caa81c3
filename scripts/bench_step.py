"""Whole training steps of every task and variant: Table 2.

    python scripts/bench_step.py
    python scripts/bench_step.py task=text attention=skeinformer,v_mean micro_batch_size=8
    python scripts/bench_step.py task=text packed=false,true quantities=time

Time: the trainer's own step, the variants of a task taking turns. A step at the batch size of the
paper is put together from the time of a micro-batch, so many times, and that of an update of the
weights; the time with evaluation adds that of the official validation split, counted up from one
micro-batch, at each of the task's checks. Memory: the largest batch whose training step keeps
within memory_budget_gib, among those of which a power of two make up the paper's batch, which it
never exceeds. Each size is tried in a process of its own, which may die; a size whose trial would
take longer than trial_seconds, or more memory than the machine has, is foretold from smaller ones
and marked ≈.

Prepared data are used where they are; else random tokens of the task's lengths, marked synthetic:
time depends on the lengths alone. Options, with their defaults:

    task=text,listops,retrieval,pathfinder,image
    attention=softmax,...     names, a glob, or all; the default is the paper's rows and SDPA
    packed=                   false,true: both, as rows apart; sets model.packed
    quantities=time,memory
    micro_batch_size=4        examples
    rounds=5                  turns, fewer (2 at least) where time_budget_seconds ends
    time_budget_seconds=30    of a variant and task; one that would take longer is left out
    memory_budget_gib=16      as the paper's GPU
    trial_seconds=5           of the longest trial of a batch size
    num_threads=null          of the CPU; null: as torch chooses
    out=outputs/bench_step

Other overrides are those of scripts/train.py. Every cell is a JSON file below `out`; started again,
the same command measures what is missing. Beside them: Table 2 as CSV, Markdown and LaTeX. The
defaults take about half an hour on two cores.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from hydra.errors import HydraException
from tqdm import tqdm

from lra.benchmark.cells import Cell, CellStore, new_session, read_cells
from lra.benchmark.largest_batch import (
    Attempts,
    Limits,
    Search,
    available_bytes,
    batch_sizes,
)
from lra.benchmark.steps import StepPlan, compose_run, measure_steps, open_task
from lra.command_line import parse_overrides, read_options
from lra.record import write_text
from lra.report.rows import ROWS, TASKS
from lra.report.table2 import PACKED_SUFFIX, table, write_csv
from lra.run import choose_device
from lra.variants import selected_variants

REFERENCES = ("softmax", "softmax_fused", "v_mean")
QUANTITIES = ("time", "memory")


@dataclass
class Options:
    """What the command line may set; the module explains each."""

    task: str = ",".join(TASKS)
    attention: str = ",".join([*ROWS, "softmax_fused"])
    packed: list[bool] = field(default_factory=list)
    quantities: list[str] = field(default_factory=lambda: list(QUANTITIES))
    micro_batch_size: int = 4
    rounds: int = 5
    time_budget_seconds: float = 30.0
    memory_budget_gib: float = 16.0
    trial_seconds: float = 5.0
    num_threads: int | None = None
    out: str = "outputs/bench_step"

    def __post_init__(self) -> None:
        for quantity in self.quantities:
            if quantity not in QUANTITIES:
                raise ValueError(f"quantities={quantity} is not one of {', '.join(QUANTITIES)}")


@dataclass(frozen=True)
class Variant:
    """A row: an attention, padded or packed."""

    label: str
    attention: str
    overrides: tuple[str, ...]
    padded: str | None
    """The label of the same attention with padding."""


class StepBenchmark:
    """Fills the cells of Table 2."""

    def __init__(self, options: Options, overrides: tuple[str, ...]) -> None:
        self.options = options
        self.overrides = overrides
        self.variants = variants(selected_variants(options.attention), options.packed)
        device = choose_device(compose_run("listops", "softmax", overrides).device)
        time = {"micro_batch_size": options.micro_batch_size, "overrides": list(overrides)}
        memory = {"memory_budget_gib": options.memory_budget_gib, "overrides": list(overrides)}
        self.times = CellStore(Path(options.out, "time"), time, device)
        self.memories = CellStore(Path(options.out, "memory"), memory, device)

    def fill_times(self, task: str) -> None:
        """Measure the missing times of a task, in one session."""
        missing = [v for v in self.variants if not is_measured(self.times.find(task, v.label))]
        if not missing:
            return
        plan = StepPlan(
            task=task,
            overrides=self.overrides,
            micro_batch_size=self.options.micro_batch_size,
            num_rounds=self.options.rounds,
            budget_seconds=self.options.time_budget_seconds,
        )
        padded = [v for v in self.variants if v.label in {m.padded for m in missing}]
        present = {v.label: v for v in [*missing, *padded]}
        others = variants([name for name in REFERENCES if name not in present], [])
        wanted = {**present, **{v.label: v for v in others}}
        configs = {label: plan.config(v.attention, v.overrides) for label, v in wanted.items()}
        session = new_session()
        with tempfile.TemporaryDirectory() as directory:
            measured, stopped = measure_steps(plan, configs, Path(directory))
        for variant in missing:
            references = [r for r in (*REFERENCES, variant.padded) if r != variant.label]
            self.write(
                self.times,
                task,
                variant,
                {
                    "session": session,
                    "status": "stopped" if variant.label in stopped else "measured",
                    "reason": stopped.get(variant.label),
                    "measures": measured.get(variant.label),
                    "references": {r: measured[r] for r in references if r in measured},
                },
            )

    def fill_memory(self, task: str, variant: Variant) -> None:
        """Find the largest batch of a variant, unless that has been done."""
        if is_measured(self.memories.find(task, variant.label)):
            return
        budget = self.options.memory_budget_gib * 2**30
        overrides = (*self.overrides, *variant.overrides)
        attempt = Attempts(task, variant.attention, overrides, budget)
        limits = Limits(budget, available_bytes(), self.options.trial_seconds)
        session = new_session()
        found = Search(batch_sizes(self.batch_size(task)), attempt, limits).find()
        cell = {"session": session, "status": "measured", "reason": None, "measures": asdict(found)}
        self.write(self.memories, task, variant, cell)

    def write(self, store: CellStore, task: str, variant: Variant, cell: Cell) -> None:
        """Add whose cell it is, and on what data."""
        config = compose_run(task, variant.attention, self.overrides)
        identity: Cell = {
            "task": task,
            "label": variant.label,
            "padded": variant.padded,
            "source_kind": open_task(config).source_kind,
            "batch_size": config.trainer.batch_size,
        }
        store.write({**identity, **cell}, task, variant.label)

    def batch_size(self, task: str) -> int:
        """The paper's batch size for a task, unless overridden."""
        size: int = compose_run(task, "softmax", self.overrides).trainer.batch_size
        return size


def variants(attentions: Sequence[str], packed: Sequence[bool]) -> list[Variant]:
    """Rows; `packed` says which forms of each attention, none that the key is left alone."""
    rows = []
    for name in attentions:
        if not packed:
            rows.append(Variant(name, name, (), None))
        if False in packed:
            rows.append(Variant(name, name, ("model.packed=false",), None))
        if True in packed:
            padded = name if False in packed else None
            rows.append(Variant(f"{name}{PACKED_SUFFIX}", name, ("model.packed=true",), padded))
    return rows


def is_measured(cell: Cell | None) -> bool:
    """Whether there is nothing left to do."""
    return cell is not None and cell["status"] == "measured"


def main(arguments: list[str]) -> int:
    """Measure what is missing, print and write Table 2, and return the exit status."""
    try:
        options, overrides = read_options(Options, arguments)
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        benchmark = StepBenchmark(options, tuple(overrides))
        tasks = options.task.split(",")
        for task in tqdm(tasks, unit="task", disable=None, leave=False):
            if "time" in options.quantities:
                benchmark.fill_times(task)
            if "memory" in options.quantities:
                for variant in tqdm(benchmark.variants, desc=task, disable=None, leave=False):
                    benchmark.fill_memory(task, variant)
        print(write_tables(Path(options.out)))
    except (ValueError, OSError, RuntimeError, HydraException) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def write_tables(out: Path) -> str:
    """Table 2 of every task that has cells, as CSV, Markdown and LaTeX; return the Markdown."""
    times, memories = (
        read_cells(out / name) if (out / name).exists() else {} for name in QUANTITIES
    )
    found = {cell["task"] for cell in [*times.values(), *memories.values()]}
    tasks = [*(t for t in TASKS if t in found), *sorted(found - TASKS.keys())]
    tables = [table(task, times, memories) for task in tasks]
    markdown = "\n".join(shown.markdown() for shown in tables)
    write_text(out / "table2.md", markdown)
    write_text(out / "table2.tex", "\n".join(shown.latex() for shown in tables))
    write_csv(out / "table2.csv", times, memories)
    return markdown


if __name__ == "__main__":
    sys.exit(main(parse_overrides(sys.argv[1:], __doc__)))
