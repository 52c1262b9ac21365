"""A sparse model that talks, with routers that decide."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_llava.assistant import Assistant
from moe_llava.checkpoint.folder import save_model
from moe_llava.generate.engine import Engine
from moe_llava.model.upcycle import upcycle
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def vlm(tiny: Tiny) -> Assistant:
    dense, processor = build_stage(load_recipe(tiny.recipe), "align")
    model = upcycle(dense, num_experts=4, top_k=2, layers="all")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Assistant(Engine(model.eval(), processor))


@pytest.fixture(scope="module")
def model_folder(vlm: Assistant, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    save_model(folder, vlm.engine.model, vlm.engine.processor)
    return folder


@pytest.fixture(scope="module")
def prompts(tiny: Tiny) -> list[tuple[str, Any]]:
    red, blue = (tiny.folder / "images" / f"{name}.png" for name in ("red", "blue"))
    return [("What colour?", red), ("Hello, who is there?", None), ("<image> or <image>?", [red, blue])]
