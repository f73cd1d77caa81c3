"""Where the figures of a run go besides its files."""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lra.record import RunIdentity, write_text

Metrics = Mapping[str, float | int | None]

log = logging.getLogger(__name__)


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

    def __init__(
        self, *, directory: Path, config: Mapping[str, Any], identity: RunIdentity
    ) -> None:
        """Nothing to set up."""

    def log(self, metrics: Metrics) -> None:
        """Ignore."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Ignore."""


class WandbTracker:
    """Weights & Biases: online where a key is configured and the server answers, else offline.

    It never asks for anything, and a run does not depend on it.
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
        import wandb

        init = partial(
            wandb.init,
            project=project,
            dir=directory,
            config=dict(config),
            id=identity.run_id,
            name=identity.name,
            group=identity.study,
            job_type="train",
            tags=identity.tags,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(init_timeout=init_timeout_seconds, console="off", silent=True),
        )
        try:
            self._run = init(mode=preferred_mode() if mode == "auto" else mode)
        except wandb.Error as error:
            log.warning("W&B does not answer (%s); this run is logged offline", error)
            wandb.teardown()
            self._run = init(mode="offline")
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Metrics) -> None:
        self._run.log(dict(metrics))

    def finish(self, record: Mapping[str, Any]) -> None:
        self._run.summary.update({"record": dict(record)})
        self._run.finish(exit_code=1 if record["status"] == "failed" else 0)


def preferred_mode() -> Literal["offline"] | None:
    """Offline where no key is configured; else None, wandb's own choice. Asks for nothing."""
    import wandb

    wants_key = wandb.setup().settings.mode == "online"
    return "offline" if wants_key and not wandb.login(prompt=False, verify=False) else None


class MetricsFile:
    """`metrics.jsonl`: one line a check, the only source of curves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, metrics: Metrics) -> None:
        """Add a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def keep_until(self, step: int) -> None:
        """Drop lines after a step: a resumed run will write them again."""
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text(self.path, "".join(kept))
