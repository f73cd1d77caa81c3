"""Twelve kills; a hundred and more: `python scripts/chaos.py kills=100`."""

import subprocess
import sys

from conftest import ROOT
from test_train_script import ENVIRONMENT


def test_a_sweep_that_is_killed_again_and_again_ends_with_the_bits_of_one_left_in_peace(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/chaos.py"), "kills=12"]
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no run lost, none repeated, all weights and metrics bit-identical" in done.stdout
