"""Answers with a known reference -> how likely the model finds each, and whether it says it.

The same samples run in the same batches every time, so that what differs between two scores differs in the model.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from moe_llava.data.collate import Collator
from moe_llava.data.conversation import read_conversations
from moe_llava.data.records import read_records
from moe_llava.evaluate.questions import is_right, read_questions
from moe_llava.generate.engine import Decoding, Engine, Request, place_images

_RARE = 0.04  # share of the samples below which a kind of question is not told apart
OTHER = "other"


@dataclass(frozen=True)
class Sample:
    """A conversation whose last turn is the reference answer.

    Attributes:
        accepted: answers that count as right; the reference first.
        kind: question type, as the file says or by the first two words of the question.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    images: tuple[Path, ...]
    accepted: tuple[str, ...]
    kind: str

    @property
    def modality(self) -> str:
        return "with image" if self.images else "text only"

    @property
    def group(self) -> str:
        """What it shares with other samples: its images."""
        return "|".join(map(str, self.images)) or self.id


def read_samples(path: str | Path, images: str | Path | None = None, limit: int | None = None) -> list[Sample]:
    """Read questions (JSONL) or conversations (LLaVA JSON, messages JSONL), told apart by content.

    With a `limit`, samples are taken evenly from the whole file.

    Raises:
        ValueError: the file is neither, or wrong; line and remedy are named.
    """
    records, _ = read_records(Path(path))
    first = records[0].value if records else None
    if isinstance(first, dict) and ("conversations" in first or "messages" in first):
        samples = [_from_conversation(one) for one in read_conversations(path, images)]
    else:
        samples = [_from_question(one) for one in read_questions(path, images)]
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit}: give at least 1.")
    if limit is not None and limit < len(samples):
        samples = [samples[index] for index in np.linspace(0, len(samples) - 1, limit).round().astype(int)]
    return _without_rare_kinds(samples)


def _from_question(question: Any) -> Sample:
    content = place_images(question.question, int(question.image is not None))
    turns = ({"role": "user", "content": content}, {"role": "assistant", "content": question.accepted[0]})
    pictures = (question.image,) if question.image else ()
    return Sample(question.id, turns, pictures, question.accepted, question.kind or _opening(question.question))


def _from_conversation(conversation: Any) -> Sample:
    turns = tuple({"role": one.role, "content": one.content} for one in conversation.messages)
    asked = next(turn["content"] for turn in reversed(turns) if turn["role"] == "user")
    return Sample(conversation.id, turns, conversation.images, (turns[-1]["content"],), _opening(asked))


def _opening(question: str) -> str:
    return " ".join(question.replace("<image>", " ").lower().split()[:2])


def _without_rare_kinds(samples: list[Sample]) -> list[Sample]:
    number = Counter(sample.kind for sample in samples)
    keep = {kind for kind, count in number.items() if count >= _RARE * len(samples)}
    return [
        Sample(one.id, one.messages, one.images, one.accepted, one.kind if one.kind in keep else OTHER)
        for one in samples
    ]


@dataclass(frozen=True)
class Scores:
    """One number a sample, in the order of the samples.

    Attributes:
        log_probability: of the reference answer given what comes before it, in nats, summed over its tokens (teacher
            forcing; of a conversation, all its answers).
        right: whether the generated last answer is an accepted one; `None` where nothing was generated.
    """

    log_probability: np.ndarray
    right: np.ndarray | None


class Scorer:
    """Scores the state that an engine's model is in.

    Args:
        generate: also let the model answer, for `Scores.right`.

    Raises:
        ValueError: a sample does not fit the model; it is named.
    """

    def __init__(
        self, engine: Engine, samples: Sequence[Sample], *, generate: bool = True, batch_size: int = 64
    ) -> None:
        self.engine, self.samples, self.generate, self.batch_size = engine, list(samples), generate, batch_size
        self.encoded = [self._encode(sample) for sample in self.samples]

    def _encode(self, sample: Sample) -> dict[str, Tensor]:
        try:
            encoded = self.engine.processor.encode(list(sample.messages), len(sample.images))
        except ValueError as error:
            raise ValueError(f"Sample {sample.id!r}: {error}.") from error
        return {name: torch.tensor(ids) for name, ids in encoded.items()}

    def of(self, engine: Engine) -> "Scorer":
        """The same samples and batches for another model that reads the same tokens and sees the same features."""
        other = copy.copy(self)
        other.__dict__["batches"] = self.batches
        other.engine = engine
        engine.share_images(self.engine)
        return other

    @cached_property
    def batches(self) -> list[tuple[list[int], dict[str, Tensor]]]:
        """Indices of samples, longest first, and the inputs that they make."""
        collate = Collator(self.engine.processor.tokenizer.pad_token_id)
        order = sorted(range(len(self.samples)), key=lambda index: -len(self.encoded[index]["input_ids"]))
        batches = []
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            inputs = collate([self.encoded[index] for index in chosen])
            if paths := [path for index in chosen for path in self.samples[index].images]:
                inputs["image_features"] = self.engine.encode_images(paths).cpu()
            batches.append((chosen, inputs))
        return batches

    @torch.inference_mode()
    def score(self, title: str = "score") -> Scores:
        """Scores of all samples, with a progress bar on standard error."""
        log_probability = np.zeros(len(self.samples))
        steps = len(self.samples) * (2 if self.generate else 1)
        with tqdm(total=steps, desc=title, unit="answer", leave=False) as bar:
            for chosen, inputs in self.batches:
                log_probability[chosen] = answer_log_probability(self.engine.model, inputs).cpu().numpy()
                bar.update(len(chosen))
            right = self._right(bar.update) if self.generate else None
        return Scores(log_probability, right)

    def _right(self, progress: Any) -> np.ndarray:
        requests = [Request(sample.messages[:-1], sample.images) for sample in self.samples]
        # The answer's own length and a little more: what is longer is not it.
        longest = max(int((one["labels"] != -100).sum()) for one in self.encoded)
        decoding = Decoding(max_new_tokens=min(longest + 4, 256))
        texts = self.engine.answer(requests, decoding, batch_size=self.batch_size * 4, progress=progress)
        pairs = zip(texts, self.samples, strict=True)
        return np.array([is_right(text, sample.accepted) for text, sample in pairs], dtype=np.float64)


def answer_log_probability(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Log-probability of each row's supervised tokens, in nats, float64: `(batch,)`."""
    given = {name: tensor.to(model.device) for name, tensor in inputs.items() if name != "labels"}
    hidden = model.model(**given, use_cache=False).last_hidden_state
    targets = inputs["labels"][:, 1:].to(model.device)
    rows, places = (targets != -100).nonzero(as_tuple=True)
    logits = model.logits(hidden[rows, places])
    chosen = logits.float().log_softmax(dim=-1).gather(1, targets[rows, places][:, None])[:, 0].double()
    return chosen.new_zeros(len(targets)).index_add(0, rows, chosen)
