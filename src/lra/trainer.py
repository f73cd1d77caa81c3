"""The training loop."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from lra import checkpoint
from lra.cuda_graph import GraphedGradient
from lra.distributed import OneProcess
from lra.evaluate import Evaluation, evaluate
from lra.fitting import FittingSize
from lra.interrupt import Interrupt
from lra.measure import StepTimer, cpu_training_peak_bytes
from lra.order import DataOrder, Reader
from lra.progress import Progress, StopReason
from lra.record import RunDirectory
from lra.settings import DTYPES, TrainerSettings
from lra.tasks.base import Batch, Examples, Split
from lra.tracker import MetricsFile, Tracker
from lra.trainer_state import collect_state, restore_state

log = logging.getLogger(__name__)

REPORT_STEPS = 10
"""Steps between two looks at the loss; each look makes the host wait for the device."""


class NonFiniteLossError(ValueError):
    """Training has diverged."""


class Trainer:
    """Trains one model on one task, the same way whatever its attention.

    `micro_batch_size` examples go through the model at a time; gradients accumulate to that of
    the batch's mean loss. Several `processes` take a share of each batch; the first one writes.
    Training stops, resumable, at the first step that ends after `deadline` (`time.monotonic`).
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
        processes: OneProcess | None = None,
        deadline: float = math.inf,
    ) -> None:
        dtype = DTYPES[settings.precision]
        self.settings = settings
        self.processes = processes or OneProcess()
        self.deadline = deadline
        self.model = model.to(device)
        if settings.compile:
            self.model.compile()
        self.examples = examples
        self.add_gradient: Callable[[Batch], Tensor] = self._add_gradient
        if settings.cuda_graph:
            self.add_gradient = GraphedGradient(self._add_gradient, list(model.parameters()))
        self.optimizer = optimizer(self.model.parameters())
        self.scheduler = scheduler(self.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        order = DataOrder(
            seed=seed, num_examples=len(examples["train"]), batch_size=settings.batch_size
        )
        share = self.processes.share(settings.batch_size)
        self.reader = Reader(
            examples["train"], order, num_workers=settings.num_workers, share=share
        )
        may_halve = settings.micro_batch_size == "auto"
        micro = len(share) if settings.micro_batch_size == "auto" else settings.micro_batch_size
        self.micro_batch = FittingSize("trainer.micro_batch_size", micro, may_halve=may_halve)
        self.eval_batch = FittingSize(
            "trainer.eval_batch_size", settings.eval_batch_size, may_halve=may_halve
        )
        self.directory = directory
        self.metrics = MetricsFile(directory.metrics)
        self.device = device
        self.interrupt = Interrupt()
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] = {}
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)
        """Sum of losses, correct answers and examples since the last check."""
        self.timer = StepTimer(device)
        self.num_untimed_steps = settings.timing_warmup_steps
        self.saved_step = -1
        self.saved_at = time.monotonic()

    def fit(self, tracker: Tracker) -> StopReason:
        """Train until a rule stops it, and say which; goes on from `last.pt` where there is one.

        Every check goes to `metrics.jsonl` and to the tracker.
        Raises `NonFiniteLossError` when training diverges. What `Interrupt` catches saves first.
        """
        self.load()
        first_step, is_out_of_time = self.progress.step, False
        with self.interrupt, self._progress_bar() as bar:
            self.timer.mark()
            while (reason := self.stop_reason(is_out_of_time)) is None:
                self._measured_train_step(first_step)
                bar.update()
                if self.progress.step % REPORT_STEPS == 0:
                    bar.set_postfix(loss=f"{self.mean_loss():.3f}")
                is_interrupted, is_save_due, is_out_of_time = self.processes.any(
                    self.interrupt.requested, self._save_is_due(), time.monotonic() > self.deadline
                )
                is_check_due = self.progress.is_check_due(self.settings)
                if is_check_due:
                    self.check(tracker)
                if is_check_due or is_save_due or is_interrupted:
                    self.save()
                if is_interrupted:
                    step = self.progress.step
                    log.warning("saved at step %d; the same command goes on from there", step)
                    self.interrupt.deliver()
            if self.saved_step != self.progress.step:
                self.save()
        return reason

    def stop_reason(self, is_out_of_time: bool = False) -> StopReason | None:
        """The rule that stops training now, if any."""
        return self.progress.stop_reason(self.settings, is_out_of_time=is_out_of_time)

    def train_step(self) -> None:
        """One optimizer step on the next batch."""
        self.accumulate_gradient(self.reader.batch(self.progress.step))
        self.processes.sum_gradients(self.model.parameters())
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
        self.totals += self.micro_batch.run(lambda size: self._accumulate(batch, size))

    def _accumulate(self, batch: Batch, micro_batch_size: int) -> Float[Tensor, "3"]:
        """Returns the batch's part of `totals`."""
        self.optimizer.zero_grad(set_to_none=not self.settings.cuda_graph)
        totals = torch.zeros_like(self.totals)
        split = batch.buckets if self.settings.bucket else batch.split
        for piece in split(micro_batch_size):
            totals += self.add_gradient(piece)
        return totals

    def _add_gradient(self, batch: Batch) -> Float[Tensor, "3"]:
        """One forward and one backward pass; returns the batch's part of `totals`."""
        part = batch.to(self.device)
        with self.autocast:
            logits = self.model(part.tokens, part.token_mask, batch.lengths)
        loss = F.cross_entropy(logits.float(), part.labels, reduction="sum")
        self.scaler.scale(loss / self.settings.batch_size).backward()
        num_correct = (logits.detach().argmax(-1) == part.labels).sum()
        count = torch.full_like(num_correct, len(part))
        return torch.stack([loss.detach().double(), num_correct.double(), count.double()])

    def mean_loss(self) -> float:
        """Mean training loss since the last check, over all processes; waits for the device."""
        return self._means()[0]

    def _means(self) -> tuple[float, float]:
        loss_sum, num_correct, count = self.processes.sum(self.totals.clone()).tolist()
        loss = loss_sum / max(count, 1)
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the training loss is {loss} at step {self.progress.step} "
                f"(lr {self.progress.lr:.3g}); "
                f"lower optimizer.lr, or use trainer.precision=fp32"
            )
        return loss, num_correct / max(count, 1)

    def check(self, tracker: Tracker) -> None:
        """Evaluate on the validation split, log, and keep the weights if they are the best."""
        progress = self.progress
        train_loss, train_accuracy = self._means()
        self._collect_times()
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            progress.peak_bytes = max(progress.peak_bytes or 0, peak)
        evaluation = self.evaluate("val")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if progress.note_evaluation(evaluation):
            self.best_weights = {
                key: weight.clone() for key, weight in self.model.state_dict().items()
            }
        peak_gib = None if progress.peak_bytes is None else progress.peak_bytes / 2**30
        metrics: dict[str, float | int | None] = {
            "step": progress.step,
            "train/loss": train_loss,
            "train/accuracy": train_accuracy,
            "val/loss": evaluation.loss,
            "val/accuracy": evaluation.accuracy,
            "val/count": evaluation.count,
            "optim/lr": progress.lr,
            "time/train_seconds": progress.train_seconds,
            "time/eval_seconds": progress.eval_seconds,
            "memory/peak_allocated_gib": peak_gib,
        }
        if self.processes.is_first:
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
        return self.eval_batch.run(
            lambda size: evaluate(
                self.model,
                self.examples[split],
                batch_size=size,
                max_examples=self.settings.max_eval_examples,
                bucket=self.settings.bucket,
                device=self.device,
                autocast=self.autocast,
                processes=self.processes,
            )
        )

    def use_best_weights(self) -> None:
        """Put the weights of the lowest validation loss into the model."""
        self.model.load_state_dict(self.best_weights)

    def save(self) -> None:
        """Write `last.pt`, from which `load` goes on bit for bit, and `best.pt`."""
        self._means()  # never keep weights that have diverged
        self._collect_times()
        state = collect_state(self)
        if self.processes.is_first:
            checkpoint.save(state, self.directory.last)
            if self.progress.best_step == self.progress.step:
                checkpoint.save({"model": self.best_weights}, self.directory.best)
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()
        self.timer.mark()

    def load(self) -> None:
        """Go on where `save` left off, or begin where it has not been."""
        state = self.processes.from_first(self._read_checkpoint)
        if state is None:
            self.processes.equalize(self.model.state_dict().values())
            return
        restore_state(self, state)
        self.saved_step = self.progress.step
        log.info("resuming at step %d", self.progress.step)

    def _read_checkpoint(self) -> checkpoint.State | None:
        is_there = self.directory.last.exists()
        state = checkpoint.load(self.directory.last) if is_there else None
        self.metrics.keep_until(state["progress"]["step"] if state else 0)
        return state

    def _measured_train_step(self, first_step: int) -> None:
        # On the CPU, the second step's memory: by then the optimizer has its state, and the timings
        # are still warming up
        is_second = self.progress.step == first_step + 1
        if self.device.type == "cpu" and is_second and self.progress.peak_bytes is None:
            self.progress.peak_bytes = cpu_training_peak_bytes(
                self.train_step, self.model, self.optimizer
            )
        else:
            self.train_step()
        self.timer.mark()

    def _collect_times(self) -> None:
        seconds = self.timer.collect()
        self.progress.train_seconds += sum(seconds)
        num_untimed = min(self.num_untimed_steps, len(seconds))
        self.num_untimed_steps -= num_untimed
        self.progress.step_seconds += seconds[num_untimed:]

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.saved_at > 60 * self.settings.checkpoint_minutes

    def _progress_bar(self) -> "tqdm[NoReturn]":
        return tqdm(
            total=self.settings.max_steps,
            initial=self.progress.step,
            unit="step",
            disable=None if self.processes.is_first else True,
            leave=False,
        )
