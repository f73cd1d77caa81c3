"""Prepare the data of tasks, or say what is prepared.

    python scripts/prepare_data.py task=listops
    python scripts/prepare_data.py task=text,image        # or task=all, the five of the arena
    python scripts/prepare_data.py task=text prepare.source=PATH prepare.stand_in=NAME
    python scripts/prepare_data.py task=pathfinder resolution=128 difficulty=hard
    python scripts/prepare_data.py task=all --synthetic 64 data_dir=data/synthetic   # random tokens
    python scripts/prepare_data.py --status               # what there is, from what source
    python scripts/prepare_data.py --status --verify      # compare checksums, not sizes alone

Takes the overrides that scripts/train.py takes; `data_dir=FOLDER` says where prepared data live.
Exits with 1 if a task could not be prepared, or if prepared data are damaged.
"""

import argparse
import inspect
import logging
import os
import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tabulate import tabulate
from tqdm import tqdm

from lra.tasks import synthetic
from lra.tasks.preparation import survey
from lra.tasks.store import Store

ARENA = ("listops", "text", "retrieval", "image", "pathfinder")


def main() -> int:
    """Parse, prepare or survey, and return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="task=NAME or another override")
    parser.add_argument(
        "--synthetic", type=int, metavar="N", help="N random examples a split in the task's shape"
    )
    parser.add_argument("--status", action="store_true", help="say what is prepared")
    parser.add_argument("--verify", action="store_true", help="with --status: compare checksums")
    options = parser.parse_intermixed_args()
    names = [o.removeprefix("task=") for o in options.overrides if o.startswith("task=")]
    others = [o for o in options.overrides if not o.startswith("task=")]
    if (options.verify and not options.status) or len(names) != (0 if options.status else 1):
        parser.error("give either task=NAME, or --status and perhaps --verify")
    with hydra.initialize(version_base="1.3", config_path="../conf"):
        if options.status:
            return print_status(Path(hydra.compose("train", others).data_dir), options.verify)
        tasks = ARENA if names == ["all"] else names[0].split(",")
        return max([prepare(task, others, options.synthetic) for task in tasks])


def prepare(task: str, overrides: list[str], num_synthetic: int | None) -> int:
    """Prepare one task, print what is there now or what went wrong, and return 0 or 1."""
    try:
        config = hydra.compose("train", [f"task={task}", *overrides])
        if num_synthetic is None:
            store = build(config)
        else:
            directory, seed = Path(config.data_dir), config.seed
            store = synthetic.prepare(
                config.task, data_dir=directory, num_examples=num_synthetic, seed=seed
            )
    except (HydraException, OmegaConfBaseException, ValueError, OSError, ImportError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        reason = cause or error
        print(f"task={task}: {type(reason).__name__}: {reason}", file=sys.stderr)
        return 1
    for split, entry in store.manifest["splits"].items():
        print(
            f"{split:5} {entry['num_examples']:7,} examples, {entry['num_tokens']:13,} tokens, "
            f"length {entry['min_length']}..{entry['max_length']} (mean {entry['mean_length']:.0f})"
        )
    print(f"{store.directory}: sha256 {store.fingerprint}", flush=True)
    return 0


def build(config: DictConfig) -> Store:
    """Call what `prepare` of a task's configuration names, with a progress bar if it takes one."""
    total = sum(config.prepare.get("num_examples", {}).values()) or None
    unit = "B" if total is None else "example"  # downloaded, or generated
    with tqdm(total=total, unit=unit, unit_scale=True, disable=None, desc=config.task.name) as bar:
        offered = {"num_workers": len(os.sched_getaffinity(0)), "progress": bar.update}
        taken = inspect.signature(get_method(config.prepare._target_)).parameters
        arguments = {name: value for name, value in offered.items() if name in taken}
        store: Store = instantiate(config.prepare, **arguments)
    return store


def print_status(data_dir: Path, verify: bool) -> int:
    """Print a table of what is prepared, and return 1 if any of it is damaged, else 0."""
    prepared = list(survey(data_dir, verify=verify))
    rows = []
    for data in prepared:
        row = [data.name, f"{data.num_bytes / 2**20:,.1f}"]
        if data.store is not None:
            source, splits = data.store.manifest["source"], data.store.manifest["splits"]
            kind = " ".join(str(source[key]) for key in ("kind", "name") if key in source)
            counts = " / ".join(f"{split} {e['num_examples']:,}" for split, e in splits.items())
            row += [kind, counts, data.store.fingerprint[:12]]
        rows.append(row if data.problem is None else [*row, "DAMAGED", "", ""])
    print(f"{data_dir.resolve()}, {'checksums' if verify else 'sizes'} compared")
    print(tabulate(rows, ["data", "MiB", "source", "examples", "sha256"], disable_numparse=True))
    problems = [data.problem for data in prepared if data.problem is not None]
    print("".join(f"\n{problem}\n" for problem in problems), end="", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
