"""The training loop."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from lra import checkpoint
from lra.evaluate import Evaluation, evaluate
from lra.interrupt import Interrupt
from lra.measure import StepTimer, cpu_training_peak_bytes
from lra.order import DataOrder, Reader
from lra.record import RunDirectory
from lra.settings import DTYPES, TrainerSettings
from lra.tasks.base import Batch, Examples, Split
from lra.tracker import MetricsFile, Tracker

log = logging.getLogger(__name__)

REPORT_STEPS = 10
"""Steps between two looks at the loss; each look makes the host wait for the device."""


class NonFiniteLossError(ValueError):
    """Training has diverged."""


@dataclass
class Progress:
    """How far a run has come: with the weights, all that a resumed run needs."""

    step: int = 0
    lr: float = 0.0
    """Learning rate of the last step."""
    best_step: int = 0
    best_val_loss: float = math.inf
    best_val_accuracy: float = 0.0
    val_count: int = 0
    checks_since_best: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    """Training steps after warm-up."""
    peak_bytes: int | None = None


class Trainer:
    """Trains one model on one task, the same way whatever its attention.

    `micro_batch_size` examples go through the model at a time; gradients accumulate to that of
    the batch's mean loss.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        model: nn.Module,
        examples: Mapping[Split, Examples],
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        directory: RunDirectory,
        device: torch.device,
        seed: int,
    ) -> None:
        dtype = DTYPES[settings.precision]
        self.settings = settings
        self.model = model.to(device)
        if settings.compile:
            self.model.compile()
        self.examples = examples
        self.optimizer = optimizer(self.model.parameters())
        self.scheduler = scheduler(self.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        order = DataOrder(
            seed=seed, num_examples=len(examples["train"]), batch_size=settings.batch_size
        )
        self.reader = Reader(examples["train"], order, num_workers=settings.num_workers)
        self.directory = directory
        self.metrics = MetricsFile(directory.metrics)
        self.device = device
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] = {}
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)
        """Sum of losses, correct answers and examples since the last check."""
        self.timer = StepTimer(device)
        self.num_untimed_steps = settings.timing_warmup_steps
        self.last_save = time.monotonic()

    def fit(self, tracker: Tracker) -> Literal["patience", "max_steps", "pause"]:
        """Train until a rule stops it, and say which; goes on from `last.pt` where there is one.

        Every check goes to `metrics.jsonl` and to the tracker.
        Raises `NonFiniteLossError` when training diverges. SIGINT and SIGTERM save first.
        """
        if self.directory.last.exists():
            self.load()
        else:
            self.metrics.keep_until(0)
        first_step = self.progress.step
        with Interrupt() as interrupt, self._progress_bar() as bar:
            self.timer.mark()
            while (reason := self.stop_reason()) is None:
                if self._is_memory_step(first_step):
                    self.progress.peak_bytes = cpu_training_peak_bytes(
                        self.train_step, self.model, self.optimizer
                    )
                else:
                    self.train_step()
                self.timer.mark()
                bar.update()
                step = self.progress.step
                if step % REPORT_STEPS == 0:
                    bar.set_postfix(loss=f"{self.mean_loss():.3f}")
                if step % self.settings.check_steps == 0 or step == self.settings.max_steps:
                    self.check(tracker)
                    self.save()
                elif (
                    interrupt.requested
                    or step == self.settings.pause_at_step
                    or self._save_is_due()
                ):
                    self.save()
                if interrupt.requested:
                    log.warning("stopped at step %d; the same command goes on from there", step)
                    interrupt.deliver()
        return reason

    def stop_reason(self) -> Literal["patience", "max_steps", "pause"] | None:
        """The rule that stops training now, if any."""
        settings, progress = self.settings, self.progress
        may_stop = not settings.early_stop_guard or progress.step >= settings.min_steps
        if may_stop and progress.checks_since_best >= settings.patience:
            return "patience"
        if progress.step >= settings.max_steps:
            return "max_steps"
        if settings.pause_at_step is not None and progress.step >= settings.pause_at_step:
            return "pause"
        return None

    def train_step(self) -> None:
        """One optimizer step on the next batch."""
        self.accumulate_gradient(self.reader.batch(self.progress.step))
        self.update_weights()

    def update_weights(self) -> None:
        """The optimizer step on the gradient that has accumulated."""
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad_norm)
        self.progress.lr = float(self.optimizer.param_groups[0]["lr"])
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else the scaler skipped an overflown step
            self.scheduler.step()
        self.progress.step += 1

    def accumulate_gradient(self, batch: Batch) -> None:
        """The gradient of the batch's mean loss, one micro-batch after the other."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        split = batch.buckets if self.settings.bucket else batch.split
        for piece in split(self.settings.micro_batch_size):
            part = piece.to(self.device)
            with self.autocast:
                logits = self.model(part.tokens, part.token_mask)
            loss = F.cross_entropy(logits.float(), part.labels, reduction="sum")
            self.scaler.scale(loss / len(batch)).backward()
            num_correct = (logits.detach().argmax(-1) == part.labels).sum()
            self.totals[0] += loss.detach()
            self.totals[1] += num_correct
            self.totals[2] += len(part)

    def mean_loss(self) -> float:
        """Mean training loss since the last check; waits for the device."""
        loss_sum, _, count = self.totals.tolist()
        loss = loss_sum / max(count, 1)
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the training loss is {loss} at step {self.progress.step} "
                f"(lr {self.progress.lr:.3g}); "
                f"lower optimizer.lr, or use trainer.precision=fp32"
            )
        return loss

    def check(self, tracker: Tracker) -> None:
        """Evaluate on the validation split, log, and keep the weights if they are the best."""
        progress = self.progress
        train_loss = self.mean_loss()
        self._collect_times()
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            progress.peak_bytes = max(progress.peak_bytes or 0, peak)
        evaluation = self.evaluate("val")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        progress.eval_seconds += evaluation.seconds
        progress.val_count = evaluation.count
        progress.checks_since_best += 1
        if evaluation.loss < progress.best_val_loss:
            progress.best_val_loss = evaluation.loss
            progress.best_val_accuracy = evaluation.accuracy
            progress.best_step = progress.step
            progress.checks_since_best = 0
            self.best_weights = {
                key: weight.clone() for key, weight in self.model.state_dict().items()
            }
        peak_gib = None if progress.peak_bytes is None else progress.peak_bytes / 2**30
        metrics: dict[str, float | int | None] = {
            "step": progress.step,
            "train/loss": train_loss,
            "train/accuracy": (self.totals[1] / self.totals[2]).item(),
            "val/loss": evaluation.loss,
            "val/accuracy": evaluation.accuracy,
            "val/count": evaluation.count,
            "optim/lr": progress.lr,
            "time/train_seconds": progress.train_seconds,
            "time/eval_seconds": progress.eval_seconds,
            "memory/peak_allocated_gib": peak_gib,
        }
        self.metrics.append(metrics)
        tracker.log(metrics)
        log.info(
            "step %d: train loss %.4f, val loss %.4f, val accuracy %.2f %%",
            progress.step, train_loss, evaluation.loss, 100 * evaluation.accuracy,
        )  # fmt: skip
        self.totals.zero_()
        self.timer.mark()

    def evaluate(self, split: Split) -> Evaluation:
        """Evaluate the present weights."""
        return evaluate(
            self.model,
            self.examples[split],
            batch_size=self.settings.eval_batch_size,
            max_examples=self.settings.max_eval_examples,
            bucket=self.settings.bucket,
            device=self.device,
            autocast=self.autocast,
        )

    def use_best_weights(self) -> None:
        """Put the weights of the lowest validation loss into the model."""
        self.model.load_state_dict(self.best_weights)

    def save(self) -> None:
        """Write `last.pt`, from which `load` goes on bit for bit, and `best.pt`."""
        self.mean_loss()  # never keep weights that have diverged
        self._collect_times()
        state = {
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "totals": self.totals,
            "random": checkpoint.random_state(),
            "num_threads": torch.get_num_threads(),
        }
        checkpoint.save(state, self.directory.last)
        if self.progress.best_step == self.progress.step:
            checkpoint.save({"model": self.best_weights}, self.directory.best)
        self.last_save = time.monotonic()
        self.timer.mark()

    def load(self) -> None:
        """Go on where `save` left off."""
        state = checkpoint.load(self.directory.last)
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        self.best_weights = state["best_weights"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.totals.copy_(state["totals"])
        checkpoint.restore_random_state(state["random"])
        self.metrics.keep_until(self.progress.step)
        log.info("resuming at step %d", self.progress.step)
        if state["num_threads"] != torch.get_num_threads():
            log.warning(
                "this run had %d threads and now has %d: sums may round differently",
                state["num_threads"], torch.get_num_threads(),
            )  # fmt: skip

    def _is_memory_step(self, first_step: int) -> bool:
        # The second step: by then the optimizer has its state, and the timings are still warming up
        is_second = self.progress.step == first_step + 1
        return self.device.type == "cpu" and is_second and self.progress.peak_bytes is None

    def _collect_times(self) -> None:
        seconds = self.timer.collect()
        self.progress.train_seconds += sum(seconds)
        num_untimed = min(self.num_untimed_steps, len(seconds))
        self.num_untimed_steps -= num_untimed
        self.progress.step_seconds += seconds[num_untimed:]

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.last_save > 60 * self.settings.checkpoint_minutes

    def _progress_bar(self) -> "tqdm[NoReturn]":
        return tqdm(
            total=self.settings.max_steps,
            initial=self.progress.step,
            unit="step",
            disable=None,
            leave=False,
        )
