"""Questions on their way to an answer file: what is asked, and answers that survive an interruption."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moe_llava.evaluate.kept import keep, kept, writing
from moe_llava.evaluate.processes import Processes
from moe_llava.evaluate.scores.files import read_answers
from moe_llava.generate.engine import Decoding, Engine, ImageSource, Request, place_images
from moe_llava.train.folder import write_json


@dataclass(frozen=True)
class Item:
    """One line of an answer file.

    Attributes:
        id: `question_id`; benchmarks exist in which it is not unique.
        prompt: the text that the answer file records.
        asked: the text that the model reads, where it differs.
        image: file or bytes; None for a question about none.
    """

    id: str | int
    prompt: str
    image: ImageSource | None = None
    asked: str | None = None

    def request(self) -> Request:
        text = self.prompt if self.asked is None else self.asked
        content = place_images(text, int(self.image is not None))
        return Request(({"role": "user", "content": content},), () if self.image is None else (self.image,))


def answer_file(
    path: Path,
    items: Sequence[Item],
    load: Callable[[], Engine],
    settings: dict[str, Any],
    *,
    decoding: Decoding,
    batch_size: int = 256,
    title: str = "answering",
    processes: Processes | None = None,
    restart: bool = False,
) -> tuple[list[str], float]:
    """Answer the items into `path` (JSON lines: `question_id`, `prompt`, `text`); return the texts and the seconds.

    Answers are kept beside `path` as they come, so that a second call goes on where the first was stopped; one that
    finds `path` complete asks nothing, and loads no model. Several processes share the work; the first writes `path`.

    Args:
        load: opens the model, if there is anything to ask.
        settings: what the answers depend on, as JSON types; an earlier call must have had the same.
        restart: forget answers of other settings instead of refusing.

    Raises:
        ValueError: answers of other settings are there, or an image cannot be read.
    """
    processes = processes or Processes()
    journal = Journal(path, settings)
    if processes.is_first:
        journal.open(restart)
    processes.wait()
    if not path.exists():
        done = journal.read()
        processes.wait()  # nobody writes before all have read
        waiting = [index for index in _my_share(items, processes) if index not in done]
        _answer(waiting, items, load, journal, decoding, batch_size, title, processes)
        processes.wait()
        if processes.is_first:
            journal.finish(items)
        processes.wait()
    return [row["text"] for row in read_answers(path)], journal.seconds


def _answer(
    waiting: list[int],
    items: Sequence[Item],
    load: Callable[[], Engine],
    journal: "Journal",
    decoding: Decoding,
    batch_size: int,
    title: str,
    processes: Processes,
) -> None:
    if not waiting:
        return
    engine = load()
    requests = [items[index].request() for index in waiting]
    bar = tqdm(total=len(waiting), desc=title, unit="question", disable=not processes.is_first, smoothing=0)
    started = time.perf_counter()
    try:
        with bar:
            for at, text in engine.answers(requests, decoding, batch_size=batch_size):
                journal.keep(processes.rank, waiting[at], text)
                bar.update()
    finally:
        if processes.is_first:
            journal.add_seconds(time.perf_counter() - started)


def _my_share(items: Sequence[Item], processes: Processes) -> list[int]:
    """Positions of this process: whole images at a time, each to the process that has least so far."""
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.image if item.image is not None else ("none", index), []).append(index)
    loads = [0] * processes.count
    mine: list[int] = []
    for members in groups.values():
        rank = loads.index(min(loads))
        loads[rank] += len(members)
        if rank == processes.rank:
            mine += members
    return mine


class Journal:
    """Answers in the order in which they came, a file for each process, until the answer file is whole."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings
        self._header = path.with_name(f"{path.stem}.run.json")

    def open(self, restart: bool) -> None:
        """Check that what is there belongs to the same run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(self._header.read_text())["settings"] if self._header.exists() else {}
        if known != self.settings:
            there = [path for path in (self.path, *self._parts()) if path.exists()]
            if there and not restart:
                changed = [key for key in self.settings if known.get(key) != self.settings[key]]
                raise ValueError(
                    f"{there[0]} holds answers of another run ({', '.join(changed)} differ): choose another --out."
                )
            for path in there:
                path.unlink()
            write_json(self._header, {"settings": self.settings, "seconds": 0.0})

    @property
    def seconds(self) -> float:
        """Time spent on answers by the first process, over all calls."""
        return json.loads(self._header.read_text())["seconds"]

    def add_seconds(self, seconds: float) -> None:
        write_json(self._header, {"settings": self.settings, "seconds": round(self.seconds + seconds, 3)})

    def keep(self, rank: int, at: int, text: str) -> None:
        """Add an answer of one process."""
        keep(self.path.with_name(f"{self.path.stem}.part{rank}.jsonl"), {"at": at, "text": text})

    def read(self) -> dict[int, str]:
        """Answers so far, by position."""
        return {row["at"]: row["text"] for part in self._parts() for row in kept(part)}

    def finish(self, items: Sequence[Item]) -> None:
        """Write the answer file and remove the parts."""
        texts = self.read()
        rows = [
            {"question_id": item.id, "prompt": item.prompt, "text": texts[index]} for index, item in enumerate(items)
        ]
        beside = self.path.with_name(f".{self.path.name}.writing")
        with writing(self.path):
            beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            beside.replace(self.path)
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.part*.jsonl"))
