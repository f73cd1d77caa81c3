"""Where the figures of a run go besides its files."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lra.files import explained, write_text
from lra.record import RunIdentity

Metrics = Mapping[str, float | int | None]

log = logging.getLogger(__name__)

FINISH_SECONDS = 5.0
"""How long the end of a run waits for W&B."""


@runtime_checkable
class Tracker(Protocol):
    """Follows one run. It mirrors `metrics.jsonl` and `record.json`; nothing is read back."""

    def log(self, metrics: Metrics) -> None:
        """The figures of a check; `step` is among them."""
        ...

    def finish(self, record: Mapping[str, Any]) -> None:
        """The final record, completed, paused or failed."""
        ...


class NullTracker:
    """No tracker: the run's own files are enough."""

    def __init__(self, **run: Any) -> None:
        """Nothing to set up."""

    def log(self, metrics: Metrics) -> None:
        """Ignore."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Ignore."""


class WandbTracker:
    """Weights & Biases: online where a key is configured and the server answers, else offline.

    It never asks for anything, and a run does not depend on it: another process does the work, and
    is left alone with it if it has not finished `FINISH_SECONDS` after the run.
    """

    def __init__(
        self,
        *,
        directory: Path,
        config: Mapping[str, Any],
        identity: RunIdentity,
        project: str,
        mode: Literal["auto", "online", "offline"],
        init_timeout_seconds: float,
    ) -> None:
        self._said = (directory / "wandb.log").open("w+")
        self._mirror = subprocess.Popen(
            [sys.executable, "-m", "lra.wandb_mirror"],
            stdin=subprocess.PIPE,
            stdout=self._said,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C is for the run, which then says how it ended
        )
        assert self._mirror.stdin is not None
        self._pipe = self._mirror.stdin.fileno()
        os.set_blocking(self._pipe, False)
        init = {
            "project": project,
            "dir": str(directory),
            "config": dict(config),
            "id": os.environ.get("WANDB_RUN_ID", identity.run_id),  # set by an agent of a sweep
            "name": identity.name,
            "group": identity.study,
            "job_type": "train",
            "tags": identity.tags,
        }
        self._is_lost = False
        self._send({"mode": mode, "init_timeout_seconds": init_timeout_seconds, "init": init})

    def log(self, metrics: Metrics) -> None:
        self._send(metrics)

    def finish(self, record: Mapping[str, Any]) -> None:
        self._send({"record": record})
        assert self._mirror.stdin is not None
        self._mirror.stdin.close()
        try:
            status = self._mirror.wait(FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning(
                "W&B has not finished; it goes on in process %d, and `wandb sync` can follow",
                self._mirror.pid,
            )
        else:
            self._said.seek(0)
            for line in self._said.read().splitlines()[-1 if status else 0 :]:
                log.warning("W&B: %s", line)
        self._said.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        try:
            is_whole = self._is_lost or os.write(self._pipe, line) == len(line)
        except OSError:  # it has died, or reads no more and the pipe is full
            is_whole = False
        if not is_whole:
            self._is_lost = True
            log.warning("W&B has stopped listening; metrics.jsonl has every figure")


class MetricsFile:
    """`metrics.jsonl`: one line a check, the only source of curves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, metrics: Metrics) -> None:
        """Add a line. Raises `DiskFullError`."""
        with explained(self.path), self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def keep_until(self, step: int) -> None:
        """Drop lines after a step: a resumed run will write them again."""
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text(self.path, "".join(kept))
