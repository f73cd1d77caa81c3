"""Published results, with their sources, to stand beside ours."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from lra.report.rows import RELEASED, TASKS

SKEINFORMER_ROWS = {
    "softmax": "Standard",
    "softmax_no_dropout": "w/o dropout",
    "v_mean": "V-Mean",
    "bigbird": "BigBird",
    "performer": "Performer",
    "nystromformer": "Nystromformer",
    "reformer": "Reformer",
    "linformer": "Linformer",
    "linformer_jlt": "Linformer w/ unreduced JLT",
    "informer": "Informer",
    "informer_masked": "Informer w/ padding mask",
    "skeinformer": "Skeinformer",
    "skeinformer_uniform": "Skein w/o column sampling",
    "skeinformer_no_norm": "Skein w/o row normalization",
    "skeinformer_simple_norm": "Skein w/ simple row normalization",
    "skeinformer_no_reuse": "Skein w/o pilot sampling reutilization",
}
SKEINFORMER_ROWS |= {f"{name}_released": SKEINFORMER_ROWS[name] for name in RELEASED}
SAME_NAMES = {name: name.capitalize() for name in ("reformer", "linformer", "performer")}


@dataclass(frozen=True)
class Published:
    """A block of published accuracies, in percent."""

    heading: str
    block: str
    """Its key in `published_results.json`."""
    row_of: Mapping[str, str] = field(default_factory=dict)
    """Our variant and its row in the block."""

    @property
    def source(self) -> str:
        """Where the figures were read, and what to know about them."""
        found = blocks()[self.block]
        return "; ".join(part for part in (found["source"], found.get("note")) if part)

    def accuracy(self, row: str | None, task: str) -> float | None:
        """Percent; `average` is the plain mean of the five tasks. None where not published."""
        if task == "average":
            values = [self.accuracy(row, name) for name in TASKS]
            known = [value for value in values if value is not None]
            return sum(known) / len(TASKS) if len(known) == len(TASKS) else None
        figures = blocks()[self.block]["rows"].get(row, {})
        value: float | None = figures.get(task)
        return value

    def other_rows(self) -> list[str]:
        """Its rows for which we have no variant."""
        return [row for row in blocks()[self.block]["rows"] if row not in self.row_of.values()]


PUBLISHED = {
    "skeinformer": Published("NAACL 2022", "skeinformer_table1", SKEINFORMER_ROWS),
    "skyformer": Published(
        "Skyformer",
        "skyformer_table1",
        {
            "softmax": "Self-Attention",
            "nystromformer": "Nystromformer",
            "informer": "Informer",
            "bigbird": "BigBird",
            **SAME_NAMES,
        },
    ),
    "nystromformer": Published(
        "Nyströmformer",
        "nystromformer",
        {"softmax": "Standard", "nystromformer_conv": "Nystromformer", **SAME_NAMES},
    ),
    "google_lra_2020": Published(
        "LRA 2020",
        "google_lra_2020_11",
        {"softmax": "Transformer", "bigbird": "BigBird", **SAME_NAMES},
    ),
    "google_external": Published("LRA, external", "google_external"),
    "mega": Published("Mega", "mega_table2", {"softmax": "XFM rerun"}),
    "megalodon": Published("Megalodon", "megalodon_table6"),
    "s4": Published("S4 repository", "s4_repo"),
    "s4_paper": Published("S4", "s4_paper_copy", {"nystromformer_conv": "Nystromformer"}),
    "s5": Published("S5", "s5"),
    "not_from_scratch": Published("Not from scratch", "not_from_scratch"),
}
"""What `make_table.py 1 --beside` accepts."""


def published(names: str) -> list[Published]:
    """The blocks that a comma-separated list of short names means; `none` is none of them."""
    if names == "none":
        return []
    unknown = [name for name in names.split(",") if name not in PUBLISHED]
    if unknown:
        raise ValueError(
            f"no published results named {', '.join(unknown)}; there are {', '.join(PUBLISHED)}"
        )
    return [PUBLISHED[name] for name in names.split(",")]


@cache
def blocks() -> dict[str, Any]:
    """All blocks of the shipped file: `source`, perhaps `note`, and `rows` of figures.

    Raises `ValueError` for a block without source or rows, and for an accuracy that is none.
    """
    return validated(read("published_results.json"))


def read(name: str) -> dict[str, Any]:
    """A shipped JSON file."""
    text = resources.files("lra.report").joinpath(name).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def validated(found: dict[str, Any]) -> dict[str, Any]:
    """The blocks, if all can be used."""
    for name, block in found.items():
        if not block.get("source") or not block.get("rows"):
            raise ValueError(f"published block {name} has no source or no rows")
        for row, figures in block["rows"].items():
            if not isinstance(figures, dict):  # a formula
                continue
            for task in (*TASKS, "pathx", "avg"):
                value = figures.get(task)
                if value is not None and not 0 < value < 100:
                    raise ValueError(f"published block {name}, {row}: {task}={value} is no percent")
    return found
