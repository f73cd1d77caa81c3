"""Where a number comes from: code, machine, and what differs from the protocol."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from attention import biased_attention
from lra.ranks import own_rank
from lra.record import flatten, is_neutral, to_dict, unresolved


def git_state(directory: Path) -> dict[str, Any]:
    """Commit of the code and whether it had uncommitted changes; None where git does not know."""
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(directory, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the numerics of a run."""
    world_size = own_rank().world_size
    name = device_name(device)
    kernel = {"cpu_kernel": biased_attention.is_available()} if device.type == "cpu" else {}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": name if world_size == 1 else f"{world_size} × {name}",
        "world_size": world_size,
        "num_threads": torch.get_num_threads(),
        "tf32": device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32,
        **kernel,
    }


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def overrides(config: DictConfig, plain: DictConfig) -> dict[str, Any]:
    """What a run's configuration changes against the plain composition of its groups.

    A key that follows another one by interpolation is not named beside it.
    """
    reference, values = unresolved(plain), to_dict(config)
    changed = [k for k, v in unresolved(config).items() if v != reference.get(k)]
    resolved = dict(flatten(values))
    return {key: resolved[key] for key in changed if not is_neutral(key)}


def governed_keys(plain: DictConfig) -> set[str]:
    """Keys that a protocol decides: its own, the optimizer's, and all interpolated from it."""
    return {
        key
        for key, value in unresolved(plain).items()
        if key.startswith(("protocol.", "optimizer.")) or "${protocol." in str(value)
    }
