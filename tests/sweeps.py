"""Sweeps of small runs, some of which go wrong the first time."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from test_train_script import ENVIRONMENT, SMALL, read_record

FAULTY = """
_target_: faults.FaultyAttention
_partial_: true
how: {how}
marker: {how}_has_happened
dropout: 0.1
"""


class Launch:
    """Runs sweeps in a folder; the variants `raises`, `killed`, `preempted` go wrong once."""

    def __init__(self, data_dir, cwd):
        self.cwd = cwd
        self.fixed = (f"data_dir={data_dir}", "tracker=none", *SMALL)
        folder = cwd / "conf/attention"
        folder.mkdir(parents=True)
        for name, how in (("raises", "raise"), ("killed", "kill"), ("preempted", "preempt")):
            (folder / f"{name}.yaml").write_text(FAULTY.format(how=how))

    def __call__(self, *overrides, expected=0, **environment):
        flags = ("-m", f"--config-dir={self.cwd / 'conf'}")
        script = str(ROOT / "scripts/train.py")
        paths = os.pathsep.join([*sys.path, str(ROOT / "tests")])
        done = subprocess.run(
            [sys.executable, script, *flags, *self.fixed, *overrides],
            cwd=self.cwd,
            env=ENVIRONMENT | {"PYTHONPATH": paths} | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout + done.stderr


def directory(cwd, attention, seed=0) -> Path:
    return cwd / "outputs/adhoc/clean/listops_short" / attention / f"seed_{seed}"


def statuses(cwd):
    return {
        path.parent.parent.name: read_record(path.parent)["status"]
        for path in cwd.rglob("record.json")
    }
