"""Which runs may stand in one accuracy table, and which in one of its columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lra.record import Record
from lra.report.rows import TASKS

MACHINERY = (
    "model.activation_checkpointing",
    "trainer.bucket",
    "trainer.eval_batch_size",
    "trainer.micro_batch_size",
)
"""How examples go through the model: decides time and memory, and accuracy only by rounding."""

NO_PART_OF_A_RECIPE = (
    "attention.",
    "device",
    "label",
    "model.",
    "name",
    "num_features",
    "protocol.",
    "trainer.compile",
    "trainer.precision",
    "trainer.timing_warmup_steps",
    *MACHINERY,
)
"""Overrides that stand elsewhere: in the row's name, in the conditions, or in a remark."""


@dataclass(frozen=True)
class Conditions:
    """What all runs of an accuracy table share: protocol, backbone, numerics and machine."""

    protocol: str
    headline: str
    """Whose test accuracy is shown: of the best weights by validation loss, or of the last."""
    changes: tuple[str, ...]
    """Switches of the protocol and keys of the model that are not as the protocol has them."""
    num_features: int
    precision: str
    device: str

    @classmethod
    def of(cls, record: Record) -> "Conditions":
        """The conditions of one run."""
        environment = record["environment"]
        numerics = [environment["precision"]]
        numerics += [name for name in ("tf32", "compile") if environment.get(name)]
        changed = record["overrides"] | record["protocol"]["overrides"]
        return cls(
            protocol=record["protocol"]["name"],
            headline=record["result"]["headline"],
            changes=tuple(
                f"{key}={value}"
                for key, value in sorted(changed.items())
                if key.startswith(("protocol.", "model.")) and key not in MACHINERY
            ),
            num_features=record["config"]["num_features"],
            precision=" ".join(numerics),
            device=environment["device"],
        )

    def __str__(self) -> str:
        protocol = " ".join([self.protocol, *self.changes])
        return f"protocol {protocol}, {self.num_features} features, {self.precision}, {self.device}"


@dataclass(frozen=True)
class Recipe:
    """What all runs of a column share: data, and what differs from the task's configuration."""

    task: str
    """The configuration in `conf/task`, whatever the runs are filed under."""
    source_kind: str
    source_name: str | None
    sha256: str
    val_is_test: bool
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, record: Record, besides: tuple[str, ...] = ()) -> "Recipe":
        """The recipe of one run, without the keys `besides`."""
        data = record["data"]
        return cls(
            task=record["config"]["choices"]["task"],
            source_kind=data["source_kind"],
            source_name=data.get("source_name"),
            sha256=data["sha256"],
            val_is_test=data["val_is_test"],
            overrides=tuple(
                f"{key}={value}"
                for key, value in sorted(record["overrides"].items())
                if not key.startswith((*NO_PART_OF_A_RECIPE, *besides))
            ),
        )

    @property
    def family(self) -> str | None:
        """The task of the arena that it is, or is a preset of (`listops_512`), if any."""
        return next((t for t in TASKS if f"{self.task}_".startswith(f"{t}_")), None)

    @property
    def is_stand_in(self) -> bool:
        """Whether the data are not the task's."""
        return self.source_kind == "stand-in"

    def __str__(self) -> str:
        kind = f"stand-in {self.source_name}" if self.is_stand_in else self.source_kind
        parts = [f"{kind} data (sha256 {self.sha256[:12]})", *self.overrides]
        return ", ".join([*parts, "validation is test"] if self.val_is_test else parts)


def variant_name(record: Record) -> str:
    """The attention, with what was changed of it."""
    changed = [
        f"{key.removeprefix('attention.')}={value}"
        for key, value in sorted(record["overrides"].items())
        if key.startswith("attention.")
    ]
    return " ".join([record["attention"], *changed])


def shared_recipe(records: Mapping[Path, Record], besides: tuple[str, ...] = ()) -> Recipe:
    """The recipe of all runs on one task; they may differ in the keys `besides`.

    Raises `ValueError`, naming what differs and in which runs, where they have more than one.
    """
    (first, record), *others = records.items()
    recipe = Recipe.of(record, besides)
    for path, other in others:
        for name, ours, theirs in _differences(recipe, Recipe.of(other, besides)):
            raise ValueError(
                f"runs on {record['task']} differ in {name}: {ours} in {first}, {theirs} in "
                f"{path}; they do not belong in one table: give one of them another study=NAME"
            )
    return recipe


def _differences(first: Recipe, second: Recipe) -> list[tuple[str, Any, Any]]:
    names = ("task", "source_kind", "source_name", "sha256", "val_is_test")
    pairs = [(name, getattr(first, name), getattr(second, name)) for name in names]
    ours, theirs = (dict(o.split("=", 1) for o in r.overrides) for r in (first, second))
    default = "as configured"
    pairs += [(k, ours.get(k, default), theirs.get(k, default)) for k in sorted(ours | theirs)]
    return [pair for pair in pairs if pair[1] != pair[2]]
