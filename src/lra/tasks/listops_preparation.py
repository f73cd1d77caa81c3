"""Preparing ListOps: generated, or read from the release. Loads no torch, to stay small."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from lra.tasks.listops_generator import GENERATOR_VERSION, ListOpsRule, generate
from lra.tasks.listops_release import LAYOUTS, OFFICIAL_COUNTS, read_split
from lra.tasks.preparation import prepare_once
from lra.tasks.release import prepare_release
from lra.tasks.store import Sequences, Store

SPLIT_KEYS = {"train": 0, "val": 1, "test": 2}


def prepare(
    *,
    name: str,
    data_dir: str,
    rule: ListOpsRule,
    num_examples: Mapping[str, int],
    seed: int,
    num_workers: int,
    progress: Callable[[int], object],
    source: str | None = None,
    stand_in: str | None = None,
) -> Store:
    """Prepare the splits in `data_dir/name`, unless exactly these data are there already.

    They are generated, or read from `source`: an archive or a directory that holds the release's
    `basic_*.tsv`, or the `listops` of Mega's `lra.zip`, at any depth. Damaged data are prepared
    again. Raises `ValueError` where other data have that place.
    """
    if source is not None:
        return prepare_release(
            Path(data_dir),
            name,
            source=Path(source),
            stand_in=stand_in,
            layouts=LAYOUTS,
            official_counts=OFFICIAL_COUNTS,
            build=_read_splits,
        )
    if stand_in is not None:
        raise ValueError(f"stand_in={stand_in} needs prepare.source=PATH")
    origin = {
        "kind": "regenerated",
        "generator": "lra.tasks.listops_generator",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "rule": vars(rule),
        "num_examples": dict(num_examples),
    }

    build = partial(_generate_splits, rule, num_examples, seed, num_workers, progress)
    return prepare_once(Path(data_dir), name, origin, build)


def _generate_splits(
    rule: ListOpsRule,
    num_examples: Mapping[str, int],
    seed: int,
    num_workers: int,
    progress: Callable[[int], object],
) -> dict[str, Sequences]:
    return {
        split: generate(
            rule,
            seed=seed,
            split=SPLIT_KEYS[split],
            num_examples=count,
            num_workers=num_workers,
            progress=progress,
        )
        for split, count in num_examples.items()
    }


def _read_splits(layout: str, files: dict[str, Path], _: Path) -> dict[str, Sequences]:
    return {split: read_split(layout, files, key) for split, key in SPLIT_KEYS.items()}
