"""`hydra/sweeper=resume`, the default: runs what is not finished, and does not stop at a failure.

Hydra imports this module at every start, so it imports what is quick. Without `from __future__
import annotations`: Hydra's plugin loader cannot read a dataclass with it.
"""

import itertools
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobStatus
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf, open_dict

from lra.gpus import visible_gpus
from lra.record import RunDirectory, to_dict
from lra.sweep import (
    Job,
    Progress,
    in_parallel,
    in_turns,
    line_log,
    wait_for_running,
    why_unfinished,
)


@dataclass
class ResumeSweeperConf:
    """The keys of `hydra.sweeper`; `conf/launcher` sets them where a launcher needs it."""

    _target_: str = "hydra_plugins.lra_sweeper.resume.ResumeSweeper"
    params: dict[str, Any] | None = None
    # each job in a process of its own: for time and memory, and so that none takes others with it
    isolate: bool = True
    # an isolated job takes one of these for itself; auto: all of this machine
    gpus: Any = "${oc.env:CUDA_VISIBLE_DEVICES,auto}"
    # null: the launcher gets its jobs at once; else one by one, so many at a time;
    # auto: as many as there are GPUs, or else cores
    max_launches: Any = None
    # jobs that the launcher gets at once, the next ones when all of them have ended; null: all
    max_batch_size: int | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="resume", node=ResumeSweeperConf, provider="lra"
)


class ResumeSweeper(BasicSweeper):
    """Launches the jobs of a sweep that are neither finished nor running.

    A job that fails or is killed stops no other one. At the end the sweep fails if a run is
    unfinished, and says why. The same command again runs what is left, failed runs included.
    """

    def __init__(
        self,
        *,
        params: dict[str, str] | None,
        isolate: bool,
        gpus: str | Sequence[str],
        max_launches: Any,
        max_batch_size: int | None,
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, params=params)
        self.gpus = visible_gpus(gpus)
        num_cores = len(os.sched_getaffinity(0))
        self.max_launches: int | None = (
            len(self.gpus) or num_cores if max_launches == "auto" else max_launches
        )
        self.errors: dict[Path, str] = {}
        """What the launcher heard of jobs that went wrong, by run directory."""

    def sweep(self, arguments: list[str]) -> None:
        """Launch what is to be done, in turns; raises if anything is left in the end."""
        assert self.config is not None
        jobs = self._compose_jobs(arguments)
        try:
            turns = in_turns(jobs)
        except ValueError as error:
            raise CompactHydraException(f"{error}") from error
        runs = {job.directory.path: job for job in jobs}
        self._announce(list(runs.values()))
        OmegaConf.save(self.config, Path(self.config.hydra.sweep.dir) / "multirun.yaml")
        with Progress([job.directory for job in runs.values()]):
            for turn in turns:
                self._run(turn)
                wait_for_running(turn)
        self._report(list(runs.values()))

    def _compose_jobs(self, arguments: list[str]) -> list[Job]:
        """All jobs, finished ones too.

        Raises if one cannot be composed, or its directory holds a run of another configuration.
        """
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        lists = itertools.chain.from_iterable(self.split_arguments(overrides, None))
        fixed = f"hydra.sweeper.gpus=[{','.join(self.gpus)}]"  # launchers hide GPUs from their jobs
        outer = HydraConfig.instance().cfg
        try:
            return [self._compose_job((*words, fixed)) for words in lists]
        finally:
            HydraConfig.instance().cfg = outer

    def _compose_job(self, overrides: tuple[str, ...]) -> Job:
        assert self.hydra_context is not None
        assert self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        HydraConfig.instance().set_config(deepcopy(config))
        path = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        with open_dict(config):
            del config["hydra"]
        directory = RunDirectory(path)
        try:
            directory.check_owner(config)
        except ValueError as error:
            raise CompactHydraException(f"{error}") from error
        return Job(overrides, directory, to_dict(config))

    def _announce(self, jobs: list[Job]) -> None:
        finished = sum(job.is_finished() for job in jobs)
        running = sum(job.is_running() for job in jobs)
        line_log().info(
            "%d runs: %d completed, %d running elsewhere, %d to do",
            len(jobs), finished, running, len(jobs) - finished - running,
        )  # fmt: skip

    def _run(self, turn: list[Job]) -> None:
        todo = [
            job
            for job in turn
            if not job.is_finished()
            and not job.is_running()
            and job.directory.path not in self.errors  # its turn before this one went wrong
        ]
        if self.max_launches is not None:
            in_parallel(self._launch, [[job] for job in todo], self.max_launches)
            return
        size = self.max_batch_size or max(len(todo), 1)
        for start in range(0, len(todo), size):
            self._launch(todo[start : start + size])

    def _launch(self, jobs: list[Job]) -> None:
        """Launch a batch, and again what is left of it when the launcher itself has failed."""
        assert self.launcher is not None
        num_left = len(jobs) + 1
        while jobs and len(jobs) < num_left:
            num_left = len(jobs)
            try:
                returns = self.launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
            except Exception as error:
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                line_log().error("the launcher failed: %s", reason)
                jobs = [job for job in jobs if not job.is_finished() and not job.is_running()]
                self.errors.update((job.directory.path, reason) for job in jobs)
                continue
            for job, result in zip(jobs, returns, strict=True):
                if result.status == JobStatus.COMPLETED:
                    self.errors.pop(job.directory.path, None)
                else:
                    self.errors[job.directory.path] = str(result._return_value)
            return

    def _report(self, jobs: list[Job]) -> None:
        reasons = {
            path: reason
            for job in jobs
            if (reason := why_unfinished(job, self.errors.get(path := job.directory.path)))
        }
        if reasons:
            lines = [f"  {path}: {reason}" for path, reason in reasons.items()]
            raise CompactHydraException(
                "\n".join(
                    [
                        f"{len(reasons)} of {len(jobs)} runs are unfinished:",
                        *lines,
                        "the same command again runs these alone",
                    ]
                )
            )
