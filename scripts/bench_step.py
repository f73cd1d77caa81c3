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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from lra.benchmark.cells import Cell, CellStore, new_session, read_cells
from lra.benchmark.largest_batch import (
    Limits,
    Search,
    attempt_in_process,
    available_bytes,
    batch_sizes,
)
from lra.benchmark.steps import StepPlan, compose_run, measure_steps, open_task
from lra.command_line import parse_overrides, read_options
from lra.report.rendering import Table
from lra.report.table2 import PACKED_SUFFIX, PUBLISHED_ROWS, table, write_csv
from lra.run import choose_device
from lra.variants import selected_variants

REFERENCES = ("softmax", "softmax_fused", "v_mean")
TASKS = "text,listops,retrieval,pathfinder,image"
QUANTITIES = ("time", "memory")


@dataclass
class Options:
    """What the command line may set; the module explains each."""

    task: str = TASKS
    attention: str = ",".join([*PUBLISHED_ROWS, "softmax_fused"])
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
        self.rows = variants(selected_variants(options.attention), options.packed)
        device = choose_device(compose_run("listops", "softmax", overrides).device)
        common = {"overrides": list(overrides)}
        out = Path(options.out)
        time = {**common, "micro_batch_size": options.micro_batch_size}
        memory = {**common, "memory_budget_gib": options.memory_budget_gib}
        self.times = CellStore(out / "time", time, device)
        self.memories = CellStore(out / "memory", memory, device)
