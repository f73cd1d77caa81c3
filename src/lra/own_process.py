"""A job of a sweep in a process of its own, whatever launched it."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence

from lra.gpus import one_of
from lra.interrupt import Interrupt

POLL_SECONDS = 0.1


class JobDiedError(OSError):
    """The process of a job did not end well."""


def run_in_own_process(command: Sequence[str], gpus: Sequence[str]) -> None:
    """Run a command to its end, on one of the GPUs if there are any.

    What asks this process to stop asks that one to save and stop, before it has its effect here.
    Raises `JobDiedError` if that process is killed, or ends with an error.
    """
    with Interrupt() as interrupt, one_of(gpus) as gpu:
        environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu.name})
        locks = () if gpu is None else (gpu.lock.fileno(),)
        process = subprocess.Popen(command, env=environment, pass_fds=locks)
        while process.poll() is None and not interrupt.requested:
            time.sleep(POLL_SECONDS)
        if interrupt.requested:
            process.terminate()
        status = process.wait()
        interrupt.deliver()
    if status < 0:
        raise JobDiedError(f"killed by {signal.Signals(-status).name}")
    if status > 0:
        raise JobDiedError(f"ended with status {status}")
