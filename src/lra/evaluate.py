"""One pass over a split: whole, in fixed order, every example once."""

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import nn

from lra.distributed import OneProcess
from lra.measure import synchronize
from lra.tasks.base import Examples

EVALUATION_SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """Mean loss (nats) and accuracy (fraction) over `count` examples; `constant_accuracy` is that
    of always answering the class which is most frequent among them."""

    loss: float
    accuracy: float
    count: int
    constant_accuracy: float
    seconds: float
    correct: Bool[np.ndarray, " n"]
    """Which examples were answered correctly, in the split's order."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    examples: Examples,
    *,
    batch_size: int,
    max_examples: int | None,
    bucket: bool,
    device: torch.device,
    autocast: torch.autocast,
    processes: OneProcess,
) -> Evaluation:
    """Evaluate the first `max_examples` examples (None: all).

    Methods that sample do so from a fixed seed, and the training's random state is left alone:
    how often a run is evaluated does not change its weights. Each process evaluates its share.
    """
    count = len(examples) if max_examples is None else min(max_examples, len(examples))
    was_training = model.training
    model.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros(count, dtype=torch.uint8, device=device)  # 1 at right answers
    synchronize(device)
    start = time.perf_counter()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(EVALUATION_SEED + processes.rank.rank)
        share = processes.share(count)
        for first in range(share.start, share.stop, batch_size):
            batch = examples.batch(np.arange(first, min(first + batch_size, share.stop)))
            places = batch.widths().argsort(stable=True) if bucket else torch.arange(len(batch))
            answers = []
            for piece in batch.buckets(batch_size) if bucket else [batch]:
                part = piece.to(device)
                with autocast:
                    logits = model(part.tokens, part.token_mask, piece.lengths)
                loss_sum += F.cross_entropy(logits.float(), part.labels, reduction="sum")
                answers.append(logits.argmax(-1) == part.labels)
            correct[first + places.to(device)] = torch.cat(answers).to(correct.dtype)
    processes.sum(loss_sum)
    processes.sum(correct)
    synchronize(device)
    seconds = time.perf_counter() - start
    model.train(was_training)
    return Evaluation(
        loss=loss_sum.item() / count,
        accuracy=correct.sum().item() / count,
        count=count,
        constant_accuracy=np.bincount(examples.labels[:count]).max().item() / count,
        seconds=seconds,
        correct=correct.bool().cpu().numpy(),
    )
