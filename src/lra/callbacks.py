"""What has to hold before Hydra creates a directory."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lra.ranks import own_rank


class WritableOutput(Callback):
    """Ends the program with one line where the output cannot be written.

    Hydra makes a run's directory before any code of ours runs, and answers with a stack trace.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        # the study's folder; the run's own is not yet known to Hydra here
        refuse_unwritable(Path(config.hydra.sweep.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if own_rank().world_size > 1:
            sys.exit(
                "torchrun starts the processes of one run: leave out -m; for a sweep of such runs "
                "a launcher starts them, hydra.launcher.tasks_per_node=N with submitit"
            )
        refuse_unwritable(Path(config.hydra.sweep.dir))


def refuse_unwritable(directory: Path) -> None:
    """Exit with status 1 unless files can be made in `directory`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        sys.exit(f"cannot write to {directory}: {error.strerror}; start where outputs/ is writable")
