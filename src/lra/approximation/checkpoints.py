"""Q, K, V of a model that was trained here, as its attention receives them."""

import glob
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from attention.base import AttentionCore
from lra import checkpoint
from lra.approximation.errors import Projections
from lra.record import RunDirectory
from lra.run import build_model
from lra.tasks.base import Split, Task


class CheckpointSource:
    """One layer of a checkpoint on the examples of a split, in their order, padding masked.

    `path`: `last.pt`, `best.pt` or a copy of one in the directory of its run; or that directory,
    for its `last.pt`. `data_dir`: where prepared data lie now. Lengths below the task's cut the
    tokens before the model reads them.
    """

    def __init__(self, *, path: str | None, layer: int, split: Split, data_dir: str) -> None:
        if path is None:
            raise ValueError("source=checkpoint needs checkpoint=PATH, a run directory or its .pt")
        run = RunDirectory(Path(path) if Path(path).is_dir() else Path(path).parent)
        self.path = run.last if Path(path).is_dir() else Path(path)
        for needed in (self.path, run.path / "config.yaml", run.record):
            if not needed.is_file():
                raise FileNotFoundError(f"{needed} does not exist: is checkpoint={path} of a run?")
        config = OmegaConf.load(run.path / "config.yaml")
        config.task.data_dir = data_dir
        task: Task = instantiate(config.task)
        state = checkpoint.load(self.path)
        assert isinstance(config, DictConfig)
        model = build_model(config, task)
        model.load_state_dict(state["model"])
        self.model = model.eval()
        layers = self.model.encoder.layers
        if not 0 <= layer < len(layers):
            raise ValueError(
                f"source.layer={layer}: {run.path} has the layers 0 to {len(layers) - 1}"
            )
        core = self.model.get_submodule(f"encoder.layers.{layer}.attention.core")
        assert isinstance(core, AttentionCore)
        self.core = core
        self.layer = layer
        self.split = split
        self.record = run.read()
        self.step = state["progress"]["step"] if "progress" in state else None
        self.examples = task.examples(split)
        self.num_sides = task.num_sequences
        self.data_sha256 = task.fingerprint
        self.num_heads = self.core.dims.num_heads
        self.head_dim = self.core.dims.head_dim
        self.lengths = (task.max_seq_len,)

    @property
    def label(self) -> str:
        moment = self.path.stem if self.step is None else f"step_{self.step}"
        names = (self.record["task"], self.record["attention"], f"seed_{self.record['seed']}")
        return "-".join((*names, moment))

    @property
    def description(self) -> dict[str, Any]:
        return {
            "kind": "checkpoint",
            **{key: self.record[key] for key in ("task", "attention", "seed", "run_id")},
            "step": self.step,
            "layer": self.layer,
            "split": self.split,
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "data_sha256": self.data_sha256,
        }

    def num_sequences(self, num_tokens: int) -> int:
        if num_tokens > self.lengths[0]:
            raise ValueError(f"{self.path}: at most {self.lengths[0]} tokens, not {num_tokens}")
        return len(self.examples) * self.num_sides

    @torch.no_grad()
    def projections(self, sequence: int, num_tokens: int) -> Projections:
        example, side = divmod(sequence, self.num_sides)
        batch = self.examples.batch(np.array([example]))
        received: list[Tensor] = []

        def keep(core: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            received.extend(argument[side, None] for argument in arguments)

        hook = self.core.register_forward_pre_hook(keep)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(sequence)  # of the sampling in the layers below
                self.model(batch.tokens[..., :num_tokens], batch.token_mask[..., :num_tokens])
        finally:
            hook.remove()
        return Projections(*received)


def expand_paths(paths: str | list[str] | None) -> list[str | None]:
    """The checkpoints that a path, a pattern, or a list of either names.

    A pattern's matches come by name. Raises FileNotFoundError for a pattern that matches none.
    """
    if paths is None:
        return [None]
    found: list[str | None] = []
    for pattern in [paths] if isinstance(paths, str) else paths:
        matches = sorted(glob.glob(pattern))
        if not matches:
            raise FileNotFoundError(f"checkpoint={pattern} matches nothing")
        found += matches
    return found
