"""A file of data through a traced model: conversations are read as they stand, questions are answered."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from moe_llava.data import Collator, Conversation, ConversationDataset, read_conversations
from moe_llava.data.problems import DataError
from moe_llava.data.records import read_records
from moe_llava.evaluate.questions import Question, ask, is_right, read_questions
from moe_llava.generate.engine import Engine
from moe_llava.generate.plan import Prompt
from moe_llava.routing.examples import spread_out
from moe_llava.routing.figures import matplotlib
from moe_llava.routing.report import write_report
from moe_llava.routing.routes import RouteFile
from moe_llava.routing.trace import Trace


@dataclass(frozen=True)
class TracedSample:
    """One line of `samples.jsonl`; the last four fields are empty for a conversation."""

    id: str
    images: tuple[Path, ...]
    kind: str = ""
    question: str = ""
    answer: str = ""
    right: bool | None = None

    def line(self) -> str:
        """As JSON, without what is empty."""
        fields = {"id": self.id, "images": [str(path) for path in self.images]}
        more = {"kind": self.kind, "question": self.question, "answer": self.answer, "right": self.right}
        return json.dumps(fields | {name: value for name, value in more.items() if value not in ("", None)})


Data = list[Conversation] | list[Question]


def read_data(path: str | Path, images: str | Path | None = None, limit: int | None = None) -> Data:
    """Conversations (LLaVA JSON, messages JSONL) or questions with answers (JSONL), told apart by the first item.

    Raises:
        ValueError: the file cannot be read; file and line are named.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit} leaves nothing: give at least 1.")
    records, problems = read_records(Path(path))
    if not records:
        raise DataError(problems)
    first = records[0].value
    if isinstance(first, dict) and "question" in first:
        return read_questions(path, images)[:limit]
    return read_conversations(path, images)[:limit]


def trace_data(
    engine: Engine,
    data: Data,
    path: Path,
    *,
    model: str = "",
    max_new_tokens: int = 16,
    batch_size: int = 64,
) -> list[TracedSample]:
    """Trace a model on data into the file of routes `path`; what was asked and answered, in the order of the data.

    A conversation is read whole, its answers as they are given (`part` is "answer"). A question is answered by the
    model (`part` is "generated").

    Raises:
        ValueError: the model is dense, or a sample does not fit it.
    """
    with Trace(engine, path, model=model) as trace:
        questions = [item for item in data if isinstance(item, Question)]
        if questions:
            answers = ask(engine, questions, max_new_tokens=max_new_tokens, batch_size=batch_size, title="tracing")
            return [
                TracedSample(
                    id=item.id,
                    images=(item.image,) if item.image else (),
                    kind=item.kind,
                    question=item.question,
                    answer=answer,
                    right=is_right(answer, item.accepted),
                )
                for item, answer in zip(questions, answers, strict=True)
            ]
        conversations = [item for item in data if isinstance(item, Conversation)]
        _read(engine, trace, conversations, batch_size)
        return [TracedSample(id=item.id, images=item.images) for item in conversations]


@torch.inference_mode()
def _read(engine: Engine, trace: Trace, conversations: Sequence[Conversation], batch_size: int) -> None:
    """One pass over each conversation, longest first."""
    dataset = ConversationDataset(conversations, engine.processor)
    with tqdm(total=len(dataset), desc="tracing", unit="conversation") as bar:
        for prompts, inputs in _batches(dataset, engine, batch_size):
            trace.begin(prompts)
            engine.model(**inputs, skip_logits=True)
            bar.update(len(prompts))


def _batches(
    dataset: ConversationDataset, engine: Engine, batch_size: int
) -> Iterator[tuple[list[Prompt], dict[str, Any]]]:
    collate = Collator(int(engine.processor.tokenizer.pad_token_id or 0))
    order = sorted(range(len(dataset)), key=lambda index: -dataset.lengths[index])
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        chosen = [dataset.conversations[index] for index in batch]
        inputs = {name: tensor.to(engine.model.device) for name, tensor in collate([dataset[i] for i in batch]).items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(engine.model.dtype)
        yield [Prompt([], item.images, item.id) for item in chosen], inputs


def route(
    model: str | Path,
    data: str | Path,
    out: Path,
    *,
    images: str | Path | None = None,
    limit: int | None = None,
    examples: int = 8,
    max_new_tokens: int = 16,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Trace a model on a file of data and draw the report; return the figures, with sentences in `findings`.

    Writes `routes.parquet`, `samples.jsonl`, `statistics.json`, `report.html` and `figures/` to `out`.

    Raises:
        ValueError: the data or the model cannot be read, the model is dense, or `out` holds routes already.
    """
    routes = out / "routes.parquet"
    if routes.exists():
        raise ValueError(f"{routes} exists: choose another --out.")
    matplotlib()  # before the work, not after it
    items = read_data(data, images, limit)
    engine = Engine.load(model)
    samples = trace_data(engine, items, routes, model=str(model), max_new_tokens=max_new_tokens, batch_size=batch_size)
    _write(out / "samples.jsonl", "".join(sample.line() + "\n" for sample in samples))
    shown = spread_out([sample.id for sample in samples], [sample.images for sample in samples], examples)
    with RouteFile(routes) as file:
        summary = write_report(file, out / "report.html", engine.processor, shown, out / "figures")
    _write(out / "statistics.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".writing")
    beside.write_text(text)
    beside.replace(path)
