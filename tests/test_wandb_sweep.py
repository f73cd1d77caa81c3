"""The sweep definition for W&B drives train.py through Hydra's overrides."""

import itertools

from conftest import ROOT
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args


def command_lines(definition):
    """What an agent would execute: the macros filled in by W&B's own code."""
    choices = {
        key: spec.get("values", [spec.get("value")])
        for key, spec in definition["parameters"].items()
    }
    for values in itertools.product(*choices.values()):
        args = {key: {"value": value} for key, value in zip(choices, values, strict=True)}
        macros = create_sweep_command_args({"args": args})
        macros |= {"program": [definition["program"]], "env": ["/usr/bin/env"]}
        command = create_sweep_command(definition["command"])
        yield [word for part in command for word in macros.get(part.strip("${}"), [part])]


def test_every_command_of_the_wandb_sweep_composes_to_a_run_of_its_own(compose_run):
    definition = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/wandb_sweep.yaml"))
    names = set()
    for env, python, program, *overrides in command_lines(definition):
        assert [env, python] == ["/usr/bin/env", "python"]
        assert (ROOT / program).is_file()
        names.add(compose_run(*overrides).name)
    assert len(names) == 5 * 3 * 3
