"""The learning-rate schedule."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(
    optimizer: Optimizer, *, warmup_steps: int, max_steps: int, cycle_momentum: bool
) -> OneCycleLR:
    """Linear warm-up from lr / 25 to lr, then linear decay towards 0 at `max_steps`.

    The peak is the optimizer's own lr. Smith & Topin, "Super-Convergence", 2019.
    """
    if not 1 < warmup_steps < max_steps:
        raise ValueError(
            f"trainer.warmup_steps={warmup_steps} is not between 1 and "
            f"trainer.max_steps={max_steps}"
        )
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=max_steps,
        pct_start=warmup_steps / max_steps,
        anneal_strategy="linear",
        cycle_momentum=cycle_momentum,
    )
