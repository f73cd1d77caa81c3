"""Train one run, or a sweep with -m. `python scripts/train.py --help` lists the choices."""

import logging
import os
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from lra.gpus import visible_gpus
from lra.own_process import run_in_own_process
from lra.ranks import own_rank
from lra.record import RunDirectory

log = logging.getLogger("lra")


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> None:
    """Train what `config` says, or say that it has been done."""
    os.chdir(HydraConfig.get().runtime.cwd)  # a cluster may start its workers elsewhere
    rank = own_rank()
    if not rank.is_first:  # one process speaks for the run
        log.setLevel(logging.ERROR)
    directory = RunDirectory(Path(HydraConfig.get().runtime.output_dir))
    try:
        if is_done(directory, config):
            return
        if wants_own_process():
            wants_gpu = config.device in ("auto", "cuda")
            gpus = visible_gpus(HydraConfig.get().sweeper.gpus) if wants_gpu else []
            run_in_own_process(single_run(), gpus)
            return
        with directory.lock if rank.is_first else nullcontext():
            if not is_done(directory, config):  # its last owner may have finished just now
                train(config, directory)
    except Exception as error:
        log.debug("process %d failed", rank.rank, exc_info=True)  # to train.log alone
        if isinstance(error, ValueError | OSError | MemoryError):  # for people, without a trace
            raise CompactHydraException(f"{type(error).__name__}: {error}") from error
        raise


def is_done(directory: RunDirectory, config: DictConfig) -> bool:
    """Whether this very run has been completed."""
    is_completed = directory.check_owner(config) == "completed"
    if is_completed:
        log.info("already done: %s", directory.path)
    return is_completed


def wants_own_process() -> bool:
    """Whether this process is a sweep's, and its sweeper wants a process for each job."""
    app = HydraConfig.get()
    return app.mode == RunMode.MULTIRUN and bool(getattr(app.sweeper, "isolate", False))


def single_run() -> list[str]:
    """The command that runs this job of a sweep alone, in its directory."""
    app = HydraConfig.get()
    own = [word for word in app.overrides.hydra if not word.startswith("hydra.mode=")]
    quoted = str(app.runtime.output_dir).replace("'", "\\'")
    folders = [s.path for s in app.runtime.config_sources if s.provider == "command-line"]
    flags = [f"--config-dir={folder}" for folder in folders]
    words = [*own, *app.overrides.task, f"hydra.run.dir='{quoted}'"]
    return [sys.executable, str(Path(__file__).resolve()), *flags, *words]


def train(config: DictConfig, directory: RunDirectory) -> None:
    """Run what `config` says in `directory`."""
    from lra.run import run  # torch loads here, so that --help and finished runs are quick

    app = HydraConfig.get()
    groups = [f"{group}={app.runtime.choices[group]}" for group in GROUPS_THAT_NAME_A_RUN]
    plain = compose("train", [*groups, f"study={config.study}", f"seed={config.seed}"])
    command = shlex.join(["python", "scripts/train.py", *app.overrides.task])
    log.info("%s", directory.path)
    run(config, plain, directory, command)


GROUPS_THAT_NAME_A_RUN = ("task", "attention", "protocol")


if __name__ == "__main__":
    main()
