"""What has to hold before Hydra creates a directory, and what it does not write down itself."""

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class WritableOutput(Callback):
    """Ends the program with one line where the output cannot be written.

    Hydra makes a run's directory before any code of ours runs, and answers with a stack trace.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        # the study's folder; the run's own is not yet known to Hydra here
        refuse_unwritable(Path(config.hydra.sweep.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        refuse_unwritable(Path(config.hydra.sweep.dir))


class LogFailure(Callback):
    """Puts the stack trace of a sweep's job into the job's own log, where it ran in this process.

    What explains itself in a line, a `CompactHydraException`, the sweep repeats at its end.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        error = job_return._return_value
        is_explained = isinstance(error, CompactHydraException)
        is_sweep = config.hydra.mode == RunMode.MULTIRUN
        if is_sweep and job_return.status == JobStatus.FAILED and not is_explained:
            log.error("failed", exc_info=error)


def refuse_unwritable(directory: Path) -> None:
    """Exit with status 1 unless files can be made in `directory`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        sys.exit(f"cannot write to {directory}: {error.strerror}; start where outputs/ is writable")
