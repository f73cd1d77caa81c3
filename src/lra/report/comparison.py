"""The variants of a study side by side: one table for each setting."""

import csv
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from lra.record import Record

MISSING = "—"
EXECUTION_KEYS = (
    "model.activation_checkpointing",
    "model.packed",
    "trainer.bucket",
    "trainer.compile",
    "trainer.eval_batch_size",
    "trainer.max_eval_examples",
    "trainer.micro_batch_size",
)


@dataclass(frozen=True)
class Setting:
    """What runs must share to stand in one table: task, data, protocol, budget and machine."""

    task: str
    protocol: str
    source_kind: str
    data_sha256: str
    batch_size: int
    max_steps: int
    num_features: int
    precision: str
    device: str
    num_threads: int
    execution: str
    """How batches went through the model, where that was changed: it decides time and memory."""

    @classmethod
    def of(cls, record: Record) -> "Setting":
        """The setting of one run."""
        config, environment = record["config"], record["environment"]
        changed = record["protocol"]["overrides"]
        names = [record["protocol"]["name"], *(f"{k}={v}" for k, v in sorted(changed.items()))]
        return cls(
            task=record["data"].get("source_name") or record["task"],
            protocol=" ".join(names),
            source_kind=record["data"]["source_kind"],
            data_sha256=record["data"]["sha256"],
            batch_size=config["trainer"]["batch_size"],
            max_steps=config["trainer"]["max_steps"],
            num_features=config["num_features"],
            precision=environment["precision"],
            device=environment["device"],
            num_threads=environment["num_threads"],
            execution="".join(
                f", {key}={record['overrides'][key]}"
                for key in EXECUTION_KEYS
                if key in record["overrides"]
            ),
        )

    def __str__(self) -> str:
        return (
            f"{self.task}, {self.source_kind} data (sha256 {self.data_sha256[:12]}), "
            f"protocol {self.protocol}, batch {self.batch_size}, at most {self.max_steps:,} steps, "
            f"{self.num_features} features, {self.precision}, {self.device}, "
            f"{self.num_threads} threads{self.execution}"
        )


@dataclass(frozen=True)
class Column:
    """A figure of a run: its name, a heading, and how to take it from a record."""

    name: str
    heading: str
    section: str
    key: str
    format: str
    scale: float = 1.0

    def value(self, record: Record) -> float | None:
        """The figure in the record's own unit; None where it is missing."""
        figures = record[self.section] if self.section else record
        value: float | None = figures.get(self.key)
        return value

    def cell(self, records: list[Record]) -> str:
        """Mean over runs, ± standard deviation; of a single step time, its quartiles."""
        values = [value for record in records if (value := self.value(record)) is not None]
        if not values:
            return MISSING
        text = format(statistics.fmean(values) * self.scale, self.format)
        if len(set(values)) > 1:
            text += f" ± {statistics.stdev(values) * self.scale:{self.format}}"
        if self.key == "seconds_per_step_median" and len(values) == 1:
            low, high = records[0]["cost"]["seconds_per_step_quartiles"]
            text += f" ({low:{self.format}}–{high:{self.format}})" if low is not None else ""
        return text


COLUMNS = (
    Column("val_accuracy", "val acc %", "result", "best_val_accuracy", ".2f", 100),
    Column("val_count", "of n", "result", "val_count", ",.0f"),
    Column("test_accuracy_best", "test acc %", "result", "test_accuracy_best", ".2f", 100),
    Column("test_accuracy_last", "last %", "result", "test_accuracy_last", ".2f", 100),
    Column("test_count", "of n", "result", "test_count", ",.0f"),
    Column("constant_accuracy", "one class %", "result", "test_constant_accuracy", ".2f", 100),
    Column("step_seconds", "s / step (quartiles)", "cost", "seconds_per_step_median", ".4f"),
    Column("train_seconds", "train s", "cost", "train_seconds", ",.1f"),
    Column("test_seconds", "test s", "cost", "test_seconds", ",.1f"),
    Column("peak_bytes", "peak MiB", "cost", "peak_allocated_bytes", ",.0f", 2**-20),
    Column("num_parameters", "parameters", "", "num_parameters", ",.0f"),
)


def group(records: Mapping[Path, Record]) -> dict[Setting, dict[str, list[Path]]]:
    """Run directories by setting and variant, both in alphabetical order."""
    settings: dict[Setting, dict[str, list[Path]]] = {}
    for path, record in sorted(records.items(), key=lambda item: item[1]["attention"]):
        variants = settings.setdefault(Setting.of(record), {})
        variants.setdefault(record["attention"], []).append(path)
    return dict(sorted(settings.items(), key=lambda item: str(item[0])))


def to_markdown(
    setting: Setting, variants: Mapping[str, list[Path]], records: Mapping[Path, Record]
) -> str:
    """The table of one setting, a row a variant; a missing figure is —."""
    rows = [_row(name, [records[path] for path in paths]) for name, paths in variants.items()]
    headings = ["variant", "seeds", *(column.heading for column in COLUMNS)]
    alignment = ["left", *["right"] * (len(headings) - 1)]
    table = tabulate(rows, headings, "github", disable_numparse=True, colalign=alignment)
    return f"**{setting}**\n\n{table}\n"


def _row(name: str, records: list[Record]) -> list[str]:
    completed = [record for record in records if record["status"] == "completed"]
    if not completed:
        failure = records[0]["failure"]
        why = failure["type"] if failure else records[0]["status"]
        return [name, why, *[MISSING] * len(COLUMNS)]
    return [name, str(len(completed)), *(column.cell(completed) for column in COLUMNS)]


def write_csv(path: Path, records: Mapping[Path, Record]) -> None:
    """One line a run, in the record's units, with its directory, commit and command."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [column.name for column in COLUMNS]
        writer.writerow([*IDENTITY, *names, "run_directory", "git_commit", "command", "setting"])
        for directory, record in records.items():
            setting = Setting.of(record)
            identity = [setting.task, *(record[key] for key in IDENTITY[1:])]
            values = [column.value(record) for column in COLUMNS]
            origin = [directory, record["git"]["commit"], record["command"], setting]
            writer.writerow([*identity, *("" if v is None else v for v in values), *origin])


IDENTITY = ("task", "attention", "seed", "status")
