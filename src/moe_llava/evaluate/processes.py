"""One process or several (`torchrun`, `accelerate launch`) that share the questions."""

import os
from datetime import timedelta

import torch
from torch import distributed


class Processes:
    """Which of how many processes this is; outside a launcher the only one."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.count > 1 else 0
        if self.count > 1 and not distributed.is_initialized():
            # Processes wait for the slowest, which may take long. gloo: nothing but barriers is exchanged.
            distributed.init_process_group("gloo", timeout=timedelta(days=7))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device | None:
        """A GPU of its own for each process of a machine; None where there is no choice."""
        if self.count > 1 and torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return None

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()
