"""What is measured of a trained model: answers to fixed questions, FLOPs, and how alike its experts are."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from moe_llava.data.collate import Collator
from moe_llava.data.conversation import Conversation, Message
from moe_llava.data.dataset import ConversationDataset, Mixture
from moe_llava.data.features import FeatureStore
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.evaluate.questions import read_questions
from moe_llava.generate.engine import Engine
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.accounting import Accounting
from moe_llava.routing.score import Scorer, read_samples
from moe_llava.routing.similarity import similarity

_BATCH = 128


class Questions:
    """Questions with one reference answer each, ready to be scored."""

    def __init__(self, path: Path, images: Path, processor: MoeLlavaProcessor, store: FeatureStore) -> None:
        questions = read_questions(path, images)
        self.kinds = [question.kind for question in questions]
        self.dataset = ConversationDataset([_conversation(one) for one in questions], processor, store)
        self._collate = Collator(processor.tokenizer.pad_token_id)

    @torch.inference_mode()
    def score(self, model: MoeLlavaForConditionalGeneration) -> dict[str, dict[str, float]]:
        """Of all questions and of each kind: `accuracy`, the share whose greedy answer is the reference, and `loss`,
        minus the mean log-probability of a reference answer in nats. Greedy decoding says the reference exactly if
        each of its tokens is the likeliest after those before it; so one pass gives both.
        """
        model.eval()
        right, loss = [0.0] * len(self.kinds), [0.0] * len(self.kinds)
        order = sorted(range(len(self.kinds)), key=lambda index: self.dataset.lengths[index])
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            batch = self._collate([self.dataset[index] for index in chosen])
            for index, exact, nats in zip(chosen, *_score_batch(model, batch), strict=True):
                right[index], loss[index] = exact, nats
        groups: dict[str, list[int]] = defaultdict(list)
        for index, kind in enumerate(self.kinds):
            groups[kind].append(index)
        return {
            name: {
                "accuracy": round(fmean(right[index] for index in members), 6),
                "loss": round(fmean(loss[index] for index in members), 6),
                "n": len(members),
            }
            for name, members in {"all": list(range(len(self.kinds))), **groups}.items()
        }


def _conversation(question: Any) -> Conversation:
    messages = (Message("user", f"<image>\n{question.question}"), Message("assistant", question.accepted[0]))
    return Conversation(id=question.id, messages=messages, images=(question.image,), source=question.id)


def _score_batch(
    model: MoeLlavaForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> tuple[list[float], list[float]]:
    given = {name: tensor for name, tensor in batch.items() if name != "labels"}
    hidden = model.model(**given, use_cache=False).last_hidden_state
    targets = batch["labels"][:, 1:]
    rows, places = (targets != -100).nonzero(as_tuple=True)
    wanted = targets[rows, places]
    log_probability = model.logits(hidden[rows, places]).float().log_softmax(dim=-1)
    nats = torch.zeros(len(targets)).index_add(0, rows, -log_probability.gather(1, wanted[:, None])[:, 0])
    wrong = torch.zeros(len(targets)).index_add(0, rows, (log_probability.argmax(dim=-1) != wanted).float())
    return (wrong == 0).float().tolist(), nats.tolist()


def pass_flops(accounting: Accounting, dataset: Mixture) -> float:
    """FLOPs of training once on a dataset: three times the forward products of decoder, projector and head.

    The head works at supervised positions only, the projector on image tokens; the frozen tower is not counted, since
    its features are computed once for all arms.
    """
    parts = accounting.parts
    samples = [dataset[index] for index in range(len(dataset))]
    supervised = sum(int((sample["labels"] != -100).sum()) for sample in samples)
    image_tokens = sum(
        len(sample["image_features"]) * accounting.image_tokens for sample in samples if "image_features" in sample
    )
    head = parts["embeddings"] if parts["lm_head"] == 0 else parts["lm_head"]
    matrices = parts["attention_and_norms"] + parts["ffn"] + accounting.activated_experts + parts["routers"]
    attention = sum(2 * accounting.num_layers * accounting.hidden_size * length**2 for length in dataset.lengths)
    forward = 2 * (matrices * sum(dataset.lengths) + head * supervised + parts["projector"] * image_tokens) + attention
    return 3.0 * forward


def expert_similarity(
    model: MoeLlavaForConditionalGeneration, processor: MoeLlavaProcessor, questions: Path, images: Path
) -> dict[str, float]:
    """Mean over sparse layers: cosine of the experts' weights, CKA and spread of their outputs on 64 questions."""
    samples = read_samples(questions, images, 64)
    layers = [one.as_dict() for one in similarity(Scorer(Engine(model, processor), samples, generate=False)).values()]
    return {
        "cosine": fmean(one["cosine"]["mean"] for one in layers),
        "cka": fmean(one["cka"]["mean"] for one in layers),
        "spread": fmean(one["spread"] for one in layers),
    }


def mean_of_last(lines: Sequence[dict[str, Any]], names: Sequence[str], count: int = 5) -> dict[str, float]:
    """Mean of the last log lines' figures, of those that are there."""
    last = lines[-count:]
    return {name: round(fmean(line[name] for line in last), 6) for name in names if last and name in last[-1]}
