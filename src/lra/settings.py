"""How a run is trained: the keys of `conf/trainer`, checked."""

from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

POSITIVE_SETTINGS = (
    "batch_size",
    "max_steps",
    "check_steps",
    "patience",
    "micro_batch_size",
    "eval_batch_size",
    "max_eval_examples",
    "clip_grad_norm",
    "pause_at_step",
    "time_budget_minutes",
)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """`conf/trainer`: each key is explained there."""

    batch_size: int
    warmup_steps: int
    max_steps: int
    min_steps: int
    early_stop_guard: bool
    check_steps: int
    patience: int
    micro_batch_size: int | Literal["auto"]
    eval_batch_size: int
    bucket: bool
    num_workers: int
    max_eval_examples: int | None
    precision: Precision
    compile: bool
    cuda_graph: bool
    clip_grad_norm: float | None
    timing_warmup_steps: int
    checkpoint_minutes: float
    pause_at_step: int | None
    time_budget_minutes: float | None

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"trainer.num_workers={self.num_workers} is negative")
        for name in POSITIVE_SETTINGS:
            value = getattr(self, name)
            if name == "micro_batch_size" and value == "auto":
                continue
            if isinstance(value, str):
                raise ValueError(f"trainer.{name}={value} is not a number")
            if value is not None and value <= 0:
                raise ValueError(f"trainer.{name}={value} is not positive")
        if self.precision not in DTYPES:
            raise ValueError(
                f"trainer.precision={self.precision} is not one of {', '.join(DTYPES)}"
            )
