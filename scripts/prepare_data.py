"""Prepare the data of a task: `python scripts/prepare_data.py task=listops`.

Takes the overrides that scripts/train.py takes; `data_dir=FOLDER` says where stores live.
"""

import logging
import os
import sys

import hydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm


def main(overrides: list[str]) -> int:
    """Prepare, say what is there now, and return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not any(override.startswith("task=") for override in overrides):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with hydra.initialize(version_base="1.3", config_path="../conf"):
            config = hydra.compose("train", overrides)
        total = sum(config.prepare.num_examples.values())
        with tqdm(total=total, unit="example", disable=None, desc=config.task.name) as bar:
            num_workers = len(os.sched_getaffinity(0))
            store = instantiate(config.prepare, num_workers=num_workers, progress=bar.update)
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for split, entry in store.manifest["splits"].items():
        print(
            f"{split:5} {entry['num_examples']:7,} examples, {entry['num_tokens']:11,} tokens, "
            f"length {entry['min_length']}..{entry['max_length']} (mean {entry['mean_length']:.0f})"
        )
    print(f"{store.directory}: sha256 {store.fingerprint}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
