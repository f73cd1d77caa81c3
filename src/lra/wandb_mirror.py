"""Passes what a run says on to Weights & Biases: `python -m lra.wandb_mirror`, lines of JSON in.

A process of its own, so that nothing that W&B or the network does can hold up or end a run. What it
prints is for people; the run shows it in its log.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import wandb


def mirror(lines: TextIO) -> None:
    """The first line holds the arguments of `wandb.init`, then come metrics, then the record."""
    run = start(json.loads(lines.readline()))
    run.define_metric("*", step_metric="step")
    exit_code = 1  # unless the run says otherwise, its process has died
    for line in lines:
        message = json.loads(line)
        if "record" in message:
            run.summary.update(message)
            exit_code = 1 if message["record"]["status"] == "failed" else 0
        else:
            run.log(message)
    run.finish(exit_code=exit_code)


def start(arguments: Mapping[str, Any]) -> wandb.Run:
    """Online where a key is configured and the server answers, else offline; asks for nothing."""
    timeout, mode = arguments["init_timeout_seconds"], arguments["mode"]
    settings = wandb.Settings(init_timeout=timeout, console="off", silent=True)
    common = {"resume": "allow", "reinit": "create_new", "settings": settings, **arguments["init"]}
    if mode == "auto":
        wants_key = wandb.setup().settings.mode == "online"
        has_key = not wants_key or wandb.login(prompt=False, verify=False)
        mode = None if has_key else "offline"
    try:
        return wandb.init(mode=mode, **common)
    except wandb.Error as error:
        reason = str(error).partition("\n")[0]
        print(f"does not answer ({reason}); this run is logged offline", flush=True)  # noqa: T201
        wandb.teardown()
        return wandb.init(mode="offline", **common)


if __name__ == "__main__":
    mirror(sys.stdin)
