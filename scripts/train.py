"""Train one run, or a sweep with -m. `python scripts/train.py --help` lists the choices."""

import logging
import shlex
from pathlib import Path

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from lra.record import RunDirectory

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> None:
    """Train what `config` says, or say that it has been done."""
    app = HydraConfig.get()
    directory = RunDirectory(Path(app.runtime.output_dir))
    try:
        if directory.check_owner(config) == "completed":
            log.info("already done: %s", directory.path)
            return
        from lra.run import run  # torch loads here, so that --help and finished runs are quick

        groups = [f"{group}={app.runtime.choices[group]}" for group in GROUPS_THAT_NAME_A_RUN]
        plain = compose("train", [*groups, f"study={config.study}", f"seed={config.seed}"])
        command = shlex.join(["python", "scripts/train.py", *app.overrides.task])
        log.info("%s", directory.path)
        run(config, plain, directory, command)
    except (ValueError, OSError) as error:
        log.debug("failed", exc_info=True)
        raise CompactHydraException(f"{type(error).__name__}: {error}") from error


GROUPS_THAT_NAME_A_RUN = ("task", "attention", "protocol")


if __name__ == "__main__":
    main()
