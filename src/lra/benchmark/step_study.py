"""Table 2: which cells there are to measure, and in which sessions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from lra.benchmark.cells import Cell, CellStore, new_session
from lra.benchmark.largest_batch import Attempts, Limits, Search, available_bytes, batch_sizes
from lra.benchmark.steps import PACKED_SUFFIX, StepPlan, compose_run, measure_steps, open_task
from lra.record import is_neutral
from lra.report.rows import ROWS, TASKS
from lra.run import choose_device
from lra.variants import selected_variants

REFERENCES = ("softmax", "softmax_fused", "v_mean")
QUANTITIES = ("time", "memory")


@dataclass
class StepOptions:
    """What the command line may set; `scripts/bench_step.py` explains each."""

    task: str = ",".join(TASKS)
    attention: str = ",".join([*ROWS, "softmax_fused"])
    packed: list[bool] = field(default_factory=list)
    quantities: list[str] = field(default_factory=lambda: list(QUANTITIES))
    micro_batch_size: int = 4
    rounds: int = 5
    time_budget_seconds: float = 60.0
    memory_budget_gib: float = 16.0
    trial_seconds: float = 10.0
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

    def __init__(self, options: StepOptions, overrides: tuple[str, ...]) -> None:
        self.options = options
        self.overrides = overrides
        self.variants = variants(selected_variants(options.attention), options.packed)
        self.device = choose_device(compose_run("listops", "softmax", overrides).device)
        changed = [o for o in overrides if not is_neutral(o.partition("=")[0])]
        time = {"micro_batch_size": options.micro_batch_size, "overrides": changed}
        memory = {"memory_budget_gib": options.memory_budget_gib, "overrides": changed}
        self.times = CellStore(Path(options.out, "time"), time, self.device)
        self.directory = Path(options.out, "scratch")
        self.memories = CellStore(Path(options.out, "memory"), memory, self.device)

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
        measured, stopped = measure_steps(plan, configs, self.directory)
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
        attempt = Attempts(task, variant.attention, overrides, budget, self.directory)
        available = available_bytes()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what this process keeps is not there for a trial
            available = float("inf")
        limits = Limits(budget, available, self.options.trial_seconds)
        session = new_session()
        found = Search(batch_sizes(self.batch_size(task)), attempt, limits).find()
        cell = {"session": session, "status": "measured", "reason": None, "measures": asdict(found)}
        self.write(self.memories, task, variant, cell)

    def write(self, store: CellStore, task: str, variant: Variant, cell: Cell) -> None:
        """Add whose cell it is, and on what data."""
        config = compose_run(task, variant.attention, self.overrides)
        data = open_task(config, self.directory)
        identity: Cell = {
            "task": task,
            "label": variant.label,
            "padded": variant.padded,
            "source_kind": data.source_kind,
            "source_name": data.source_name,
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
