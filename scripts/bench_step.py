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

Prepared data are used where they are; else random data of the task's lengths, named as such: time
depends on the lengths alone. Options, with their defaults:

    task=text,listops,retrieval,pathfinder,image
    attention=softmax,...     names, a glob, or all; the default is the paper's rows and SDPA
    packed=                   false,true: both, as rows apart; sets model.packed
    quantities=time,memory
    micro_batch_size=4        examples
    rounds=5                  turns, fewer (2 at least) where time_budget_seconds ends
    time_budget_seconds=60    of a variant and task; one that would take longer is left out
    memory_budget_gib=16      as the paper's GPU
    trial_seconds=10          of the longest trial of a batch size; with 600 all are tried, in hours
    num_threads=null          of the CPU; null: as torch chooses
    out=outputs/bench_step

Other overrides are those of scripts/train.py. Every cell is a JSON file below `out`; started again,
the same command measures what is missing. Beside them: Table 2 as CSV, Markdown and LaTeX. The
defaults take about half an hour on two cores.
"""

import sys
from pathlib import Path

import torch
from hydra.errors import HydraException
from tqdm import tqdm

from lra.benchmark.cells import read_cells
from lra.benchmark.step_study import QUANTITIES, StepBenchmark, StepOptions
from lra.command_line import parse_overrides, read_options
from lra.files import write_text
from lra.report.rows import TASKS
from lra.report.table2 import table, write_csv


def main(arguments: list[str]) -> int:
    """Measure what is missing, print and write Table 2, and return the exit status."""
    try:
        options, overrides = read_options(StepOptions, arguments)
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
