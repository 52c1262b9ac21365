"""A whole experiment in miniature: pictures of one colour, conversations about them, a random tower, a recipe."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPImageProcessor,
    CLIPVisionConfig,
    PreTrainedModel,
)

from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.compose import compose
from moe_llava.model.upcycle import upcycle

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "white": (250, 250, 250)}
SIZE = 28
IMAGE_TOKENS = 4
VOCABULARY = 96
IMAGE_ID = 95
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_tower() -> PreTrainedModel:
    """A random CLIP vision tower: 28 px in patches of 14, so one class token and four patches."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=SIZE, patch_size=14
    )
    return AutoModel.from_config(config).eval()


def tiny_causal(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random decoder of three layers with its head; biases are random too, so that a lost one shows."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**DECODER, **changes})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def tiny_dense(
    family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any
) -> MoeLlavaForConditionalGeneration:
    """A dense model of random parts."""
    return compose(
        tiny_causal(family, **changes).to(dtype),  # type: ignore[arg-type]  # the wrapper loses `self`
        tiny_tower().to(dtype),  # type: ignore[arg-type]  # the wrapper loses `self`
        image_token_id=IMAGE_ID,
        image_size=(SIZE, SIZE),
        feature_layer=-2,
    )


def tiny_sparse(family: str = "llama", noise: float = 0.5, **changes: Any) -> MoeLlavaForConditionalGeneration:
    """A sparse model whose experts differ."""
    return upcycle(tiny_dense(family), noise=noise, **changes)


def tiny_inputs(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A batch of three: two images, one image, no image; padded on the right, answers supervised."""
    generator = torch.Generator().manual_seed(0)
    image = [IMAGE_ID] * IMAGE_TOKENS
    rows = [[1, *image, 5, *image, 6, 7, 8, 2], [1, *image, 9, 10, 2], [1, 11, 12, 13, 2]]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for row, tokens in enumerate(rows):
        labels[row, len(tokens) - 2 : len(tokens)] = ids[row, len(tokens) - 2 : len(tokens)]
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=generator, dtype=dtype)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "labels": labels}


class Tiny:
    """Files of an experiment: `images/`, `train.json`, `text.json`, `questions.jsonl`, `tower/` and `recipe.toml`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir()
        for name, colour in COLOURS.items():
            Image.new("RGB", (40, 30), colour).save(folder / "images" / f"{name}.png")
        self._write_conversations()
        tiny_tower().save_pretrained(folder / "tower")
        CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(
            folder / "tower"
        )
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(RECIPE.format(folder=folder))

    def _write_conversations(self) -> None:
        rows: list[dict[str, Any]] = []
        for number in range(24):
            name = list(COLOURS)[number % 4]
            asked = [("human", "<image>\nWhat colour is it?"), ("gpt", f"It is {name}.")]
            rows.append({"id": str(number), "image": f"images/{name}.png", "conversations": _turns(asked)})
        text = [{"id": f"t{n}", "conversations": _turns([("human", "Hello"), ("gpt", "Hi there.")])} for n in range(8)]
        (self.folder / "train.json").write_text(json.dumps(rows + text))
        (self.folder / "text.json").write_text(json.dumps(text))
        questions = [
            {"id": name, "image": f"images/{name}.png", "question": "What colour is it?", "answer": f"It is {name}."}
            for name in COLOURS
        ]
        (self.folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))


def _turns(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": role, "value": value} for role, value in pairs]


RECIPE = """
name = "tiny-test"
output = "{folder}/run"
seed = 1

[model]
template = "vicuna"
max_length = 200

[model.vision]
path = "{folder}/tower"
feature_layer = -2

[model.tokenizer]
train_on = ["{folder}/train.json"]
vocab_size = 300

[model.language.config]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 256

[stages.align]
train = {{ projector = 1e-3 }}
data = [{{ path = "{folder}/train.json" }}]
batch_size = 8
steps = 6
log_every = 2
save_every = 2

[stages.sparsify]
train = {{ projector = 1e-3, ffn = 1e-3, experts = 1e-3, router = 1e-2 }}
sparsify = {{ num_experts = 4, top_k = 2 }}
data = [{{ path = "{folder}/train.json" }}]
batch_size = 8
steps = 6
log_every = 2
save_every = 2

[report]
models = {{ dense = "align", sparse = "sparsify" }}

[report.questions]
colours = {{ path = "{folder}/questions.jsonl" }}
"""
