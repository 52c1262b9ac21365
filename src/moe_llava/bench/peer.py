"""DeepSpeed's layer behind a pipe: it lives in an environment of its own, named by the path of its Python."""

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

WORKER = Path(__file__).with_name("deepspeed_worker.py")


class DeepSpeed:
    """A process that holds one case at a time and runs it when asked.

    Args:
        python: the interpreter of an environment with deepspeed, torch and transformers.

    Raises:
        ValueError: it does not start.
    """

    def __init__(self, python: str | Path) -> None:
        if not Path(python).is_file():
            raise ValueError(f"--deepspeed {python}: no such file; give the python of an environment with deepspeed.")
        self._python = python
        self._process = subprocess.Popen(
            [str(python), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.versions = self._read()
        except ValueError:
            self.close()
            raise

    def build(self, case: str, **job: Any) -> None:
        """Make ready what `run` runs; see the worker for the fields."""
        self._ask({"case": case, "threads": torch.get_num_threads(), **job})

    def run(self) -> float:
        """Seconds of one run, as the worker measures them."""
        return self._ask({"case": "run"})["seconds"]

    def peak_bytes(self, case: str, **job: Any) -> int:
        """Most bytes that a case holds in a process of its own, beyond what that held before."""
        other = DeepSpeed(self._python)
        try:
            other.build(case, **job)
            return other._ask({"case": "memory"})["bytes"]
        finally:
            other.close()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise ValueError(_ENDED) from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(_ENDED)
        return json.loads(line)


_ENDED = f"DeepSpeed's process ended; to see why, run {WORKER} with the python that --deepspeed names."
