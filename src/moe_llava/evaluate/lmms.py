"""Our models for lmms-eval (the `lmms` extra), which finds them by an entry point of this package.

lmms-eval --model moe_llava --model_args pretrained=runs/tiny/sparsify --tasks TASK
"""

import hashlib
from collections import defaultdict
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

from moe_llava.generate.engine import Decoding, Engine, Request, place_images

MANIFEST = ModelManifest(model_id="moe_llava", simple_class_path="moe_llava.evaluate.lmms.MoeLlava")
PORTION = 512  # requests whose images are in memory at once


class MoeLlava(lmms):
    """Answers lmms-eval's requests with the engine.

    Args:
        pretrained: folder of a checkpoint.
        batch_size: most rows of a batch.
        device: by default a GPU if there is one.
        max_batch_size: given by lmms-eval, and of no use here.
    """

    def __init__(
        self, pretrained: str, batch_size: int | str = 64, device: str | None = None, max_batch_size: Any = None
    ) -> None:
        super().__init__()
        there = device if device and (device != "cuda" or torch.cuda.is_available()) else None
        self.engine = Engine.load(pretrained, device=there)
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else 64

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in order, each cut at the first of its `until` texts."""
        answers: list[str] = []
        with tqdm(total=len(requests), desc="answering", unit="question") as bar:
            for start in range(0, len(requests), PORTION):
                answers += self._portion(requests[start : start + PORTION], bar)
        return answers

    def _portion(self, requests: list[Instance], bar: Any) -> list[str]:
        known: dict[str, Image.Image] = {}
        asked: dict[Decoding, list[int]] = defaultdict(list)
        turns: list[Request] = []
        for index, request in enumerate(requests):
            context, settings, visual, document, task, split = request.args
            pictures = visual(self.task_dict[task][split][document]) if visual else []
            # Equal pictures become one object, by which the engine knows what its questions share.
            images = tuple(known.setdefault(_key(picture), picture) for picture in pictures)
            turns.append(Request(({"role": "user", "content": place_images(context, len(images))},), images))
            asked[_decoding(settings)].append(index)
        answers = [""] * len(requests)
        for decoding, members in asked.items():
            found = self.engine.answers([turns[index] for index in members], decoding, batch_size=self.batch_size)
            for at, text in found:
                answers[members[at]] = _cut(text, requests[members[at]].args[1].get("until"))
                bar.update()
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise ValueError("moe_llava answers in words: choose tasks of output_type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise ValueError("moe_llava takes tasks of one round: choose output_type generate_until")


def _key(picture: Image.Image) -> str:
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()


def _decoding(settings: dict[str, Any]) -> Decoding:
    warm = settings.get("temperature") or 0.0
    return Decoding(
        max_new_tokens=settings.get("max_new_tokens", 128),
        temperature=float(warm) if settings.get("do_sample", warm > 0) else 0.0,
        top_p=float(settings.get("top_p") or 1.0),
    )


def _cut(text: str, until: Any) -> str:
    for end in [until] if isinstance(until, str) else until or []:
        text = text.split(end)[0] if end else text
    return text.strip()
