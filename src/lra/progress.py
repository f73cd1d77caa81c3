"""How far a run has come, and what ends it."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lra.evaluate import Evaluation
from lra.settings import TrainerSettings

StopReason = Literal["patience", "max_steps", "pause", "time_budget"]


@dataclass
class Progress:
    """With the weights, all that a resumed run needs."""

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

    def stop_reason(self, settings: TrainerSettings, *, is_out_of_time: bool) -> StopReason | None:
        """The rule that stops training now, if any."""
        may_stop = not settings.early_stop_guard or self.step >= settings.min_steps
        if may_stop and self.checks_since_best >= settings.patience:
            return "patience"
        if self.step >= settings.max_steps:
            return "max_steps"
        if settings.pause_at_step is not None and self.step >= settings.pause_at_step:
            return "pause"
        return "time_budget" if is_out_of_time else None

    def note_evaluation(self, evaluation: Evaluation) -> bool:
        """Count an evaluation of the validation split: whether its loss is the lowest so far."""
        self.eval_seconds += evaluation.seconds
        self.val_count = evaluation.count
        self.checks_since_best += 1
        is_best = evaluation.loss < self.best_val_loss
        if is_best:
            self.best_val_loss = evaluation.loss
            self.best_val_accuracy = evaluation.accuracy
            self.best_step = self.step
            self.checks_since_best = 0
        return is_best

    def is_check_due(self, settings: TrainerSettings) -> bool:
        """Whether the validation split is to be evaluated after this step."""
        return self.step % settings.check_steps == 0 or self.step == settings.max_steps
