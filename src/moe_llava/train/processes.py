"""The processes that a launcher (`torchrun`, `accelerate launch`) started: who is first, waiting, one's end."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

# Processes wait for the first while it reads the data or answers questions, which may take hours. A process that has
# died is noticed by its closed connection and by the launcher, not by this.
PATIENCE = timedelta(days=1)


def count() -> int:
    """Processes of this job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process: 0 for the first, or the only one."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def join() -> None:
    """Meet the other processes; nothing where there are none."""
    if count() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group(timeout=PATIENCE)


def wait() -> None:
    """Until all are here."""
    if distributed.is_initialized():
        distributed.barrier()


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; the others wait for it."""
    box: list[Any] = [make() if is_first() else None]
    if distributed.is_initialized():
        distributed.broadcast_object_list(box, src=0)
    return box[0]


class JobEnded(OSError):
    """Another process of the job has ended, so this one cannot go on."""


@contextmanager
def one_for_all(output: str | Path) -> Iterator[None]:
    """End with one sentence when another process of the job is gone.

    Raises:
        JobEnded: a collective failed, or the launcher ends this process because another has died.
    """
    if count() == 1:
        yield
        return

    def told_to_end(*_: object) -> NoReturn:
        raise JobEnded(_sentence(output, "the launcher ends this one"))

    before = signal.signal(signal.SIGTERM, told_to_end)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        # gloo's and NCCL's errors are RuntimeErrors like any other, so the sentence quotes what was said.
        raise JobEnded(_sentence(output, str(error).splitlines()[0])) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _sentence(output: str | Path, cause: str) -> str:
    return (
        f"process {rank()} of {count()} stops, as it must when another process of the job has ended ({cause}). "
        f"The last checkpoint under {output} is whole: run the same command with --resume; "
        "--debug shows where it stopped."
    )
