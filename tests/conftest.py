"""One thread, fixed seeds, and small data in the real formats."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lra.tasks.listops_generator import ListOpsRule
from lra.tasks.listops_preparation import prepare

ROOT = Path(__file__).parents[1]
ATTENTIONS = sorted(path.stem for path in (ROOT / "conf/attention").glob("*.yaml"))
TASKS = sorted(path.stem for path in (ROOT / "conf/task").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _ctrl_c_works() -> None:
    """Also where tests run in the background of a shell, which then has SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a small `listops_short`."""
    directory = tmp_path_factory.mktemp("data")
    prepare(
        name="listops_short",
        data_dir=str(directory),
        rule=ListOpsRule(min_length=4, max_length=64, max_depth=4, max_args=5),
        num_examples={"train": 512, "val": 70, "test": 50},
        seed=0,
        num_workers=1,
        progress=lambda count: None,
    )
    return directory


@pytest.fixture
def compose_run() -> Callable[..., DictConfig]:
    """Compose `train` as the command line does, `hydra:` names filled in."""

    def composed(*overrides: str) -> DictConfig:
        choices = dict(o.split("=", 1) for o in overrides if o.startswith(("task=", "attention=")))
        names = {"task": "listops", "attention": "skeinformer"} | choices
        fixed = [f"choices.{group}={name}" for group, name in names.items()]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train", [*fixed, *overrides])

    return composed
