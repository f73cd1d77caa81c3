"""Which of a run's processes this one is, from what its launcher set. Imports no torch."""

import os
from dataclasses import dataclass

LAUNCHERS = (
    ("WORLD_SIZE", "RANK", "LOCAL_RANK"),  # torchrun
    # a step of srun, not the batch script around it, which is one process whatever it asked for
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    ("SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID"),
)


@dataclass(frozen=True)
class Rank:
    """Process `rank` of `world_size`, `local_rank` of those on its machine; they count from 0."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what the run leaves."""
        return self.rank == 0


def own_rank() -> Rank:
    """The rank of this process."""
    for size, rank, local_rank in LAUNCHERS:
        if int(os.environ.get(size, "1")) > 1:
            values = [int(os.environ[name]) for name in (rank, local_rank, size)]
            return Rank(*values)
    return Rank()
