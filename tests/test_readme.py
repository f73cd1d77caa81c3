"""Every command of the README and the Makefile is one that works."""

import re
import runpy
import shlex
import subprocess
import sys
from functools import partial

import pytest
from conftest import ATTENTIONS, ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from attention.conformance.subject import Subject
from attention.conformance.suite import PROPERTIES, examine
from lra.command_line import read_options
from lra.report.published import PUBLISHED

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line and not line.startswith("#")]
MAKE = sorted({line for line in COMMANDS if line.startswith("make ")})
TRAIN = [line for line in COMMANDS if re.match(r"(python|torchrun .*) scripts/train.py", line)]
PREPARE = [line for line in COMMANDS if line.startswith("python scripts/prepare_data.py")]
CHECK = [line for line in COMMANDS if line.startswith("python scripts/check_attention.py")]
REPORT = [line for line in COMMANDS if line.startswith("python scripts/make_")]
APPROXIMATE = [line for line in COMMANDS if line.startswith("python scripts/approximate.py")]
STUDY = [line for line in COMMANDS if line.startswith("python scripts/study.py")]
BENCH = [line for line in COMMANDS if re.match(r"python scripts/(bench_\w+|table3)\.py", line)]
OTHER = {
    "pip install -e '.[approximation]'",
    "git clone <this repository> lra && cd lra",
    "source .venv/bin/activate",
}


def test_every_command_is_known_to_these_tests():
    known = [*MAKE, *TRAIN, *PREPARE, *CHECK, *REPORT, *APPROXIMATE, *BENCH, *STUDY]
    assert set(COMMANDS) - set(known) <= OTHER
    assert {"make demo", "make test"} <= set(MAKE)
    assert len(TRAIN) >= 3


@pytest.mark.parametrize("command", MAKE)
def test_make_targets_exist(command):
    subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, check=True)


@pytest.mark.parametrize("command", TRAIN + PREPARE)
def test_train_and_prepare_commands_compose(command):
    words = [w for w in shlex.split(command)[2:] if "=" in w and not w.startswith("--")]
    swept = [word.split("=", 1) for word in words]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for key, value in swept:
            for choice in value.split(","):
                if (key, choice) == ("attention", "mine"):  # the reader's own
                    continue
                compose("train", [f"{key}={choice}"])


@pytest.mark.parametrize("command", CHECK)
def test_check_commands_name_variants(command):
    [names] = [word.split("=", 1)[1] for word in shlex.split(command) if "attention=" in word]
    assert set(names.split(",")) <= {*ATTENTIONS, "mine", "all"}


@pytest.mark.parametrize("command", REPORT)
def test_report_commands_are_understood_and_name_studies_of_conf(command, tmp_path):
    """Without runs they get as far as saying so."""
    words = shlex.split(command)
    study = words[words.index("--study") + 1]
    configurations = "".join(p.read_text() for p in (ROOT / "conf").rglob("*.yaml"))
    assert f"study: {study}" in configurations
    run = [sys.executable, str(ROOT / words[1]), *words[2:]]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert f"there are no runs below outputs/{study}" in done.stderr


def test_the_readme_lists_every_published_source():
    assert [f"`{name}`" for name in PUBLISHED if f"`{name}`" not in README] == []


@pytest.mark.parametrize("command", APPROXIMATE)
def test_approximation_commands_name_variants_sources_and_keys_that_exist(command):
    words = dict(word.split("=", 1) for word in shlex.split(command)[2:])
    sources = {path.stem for path in (ROOT / "conf/source").glob("*.yaml")}
    assert set(words.pop("attention", "softmax").split(",")) <= {*ATTENTIONS, "mine"}
    assert set(words.pop("source", "minilm").split(",")) <= {*sources, "mine"}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose("approximation", [f"{key}={value}" for key, value in words.items()])


@pytest.mark.parametrize("command", STUDY)
def test_study_commands_get_as_far_as_what_is_not_there(command, tmp_path):
    _, path, *words = shlex.split(command.replace("--minutes 9", "--minutes 0"))
    run = [sys.executable, str(ROOT / path), *words]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    said = {"status": "240 missing", "run": "48 missing", "export": "has begun"}
    assert said.get(words[0], "cannot be read") in done.stdout + done.stderr


@pytest.mark.parametrize("command", BENCH)
def test_benchmark_commands_set_options_that_exist(command):
    _, path, *overrides = shlex.split(command)
    module = runpy.run_path(str(ROOT / path))
    [kind] = [x for name, x in module.items() if name.endswith("Options")]
    options, others = read_options(kind, overrides)
    assert others == []
    assert set(options.attention.split(",")) <= {*ATTENTIONS, "mine", "all"}


def test_the_readmes_variant_keeps_the_contract():
    """The example of two files, as printed, passes the check that the README recommends."""
    [module] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    [yaml] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    namespace: dict = {}
    exec(module, namespace)
    config = OmegaConf.create(yaml)
    variant = namespace[config._target_.rsplit(".", 1)[1]]
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    subject = Subject("mine", partial(variant, **arguments))
    for checked in PROPERTIES:
        assert examine(subject, checked).status == "pass", checked.name
