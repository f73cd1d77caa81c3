"""A variant that goes wrong once, for tests of sweeps."""

import os
import signal
import subprocess
import time
from pathlib import Path

from attention.softmax import SoftmaxAttention


class FaultyAttention(SoftmaxAttention):
    """Softmax, but for the first forward pass that finds no `marker`.

    That one raises, dies, or has its SLURM job told that it is going to be stopped.
    """

    def __init__(self, dims, *, how, marker, **settings):
        super().__init__(dims, **settings)
        self.how, self.marker = how, Path(marker)

    def forward(self, q, k, v, token_mask):
        if not self.marker.exists():
            self.marker.touch()
            if self.how == "raise":
                raise RuntimeError("this variant goes wrong")
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            subprocess.run(["scancel", "--signal=USR2", os.environ["SLURM_JOB_ID"]], check=True)
            time.sleep(1)
        return super().forward(q, k, v, token_mask)
