"""lmms-eval's requests through the engine."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("lmms_eval", reason="the lmms extra is not installed")

from moe_llava.checkpoint.folder import save_model
from moe_llava.evaluate.lmms import MANIFEST, MoeLlava
from moe_llava.generate.engine import Decoding, Engine, Request
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import COLOURS, Tiny


def test_requests_are_answered_in_order_and_cut(tiny: Tiny, tmp_path: Path) -> None:
    model, processor = build_stage(load_recipe(tiny.recipe), "align")
    save_model(tmp_path, model, processor)
    files = [tiny.folder / "images" / f"{name}.png" for name in COLOURS]
    wrapper = MoeLlava(str(tmp_path), batch_size="8")
    wrapper.task_dict = {"task": {"test": files}}
    settings = [{"max_new_tokens": 4}, {"max_new_tokens": 6, "until": ["\n"]}]
    requests = [
        SimpleNamespace(args=("What?", settings[n % 2], lambda file: [Image.open(file)], n % 4, "task", "test"))
        for n in range(12)
    ]
    engine = Engine.load(tmp_path)
    expected = [
        engine.answer([Request(({"role": "user", "content": "<image>\nWhat?"},), (files[n % 4],))], Decoding(tokens))[0]
        for n, tokens in zip(range(12), (4, 6) * 6, strict=True)
    ]
    assert wrapper.generate_until(requests) == [
        text.split("\n")[0].strip() if n % 2 else text for n, text in enumerate(expected)
    ]
    assert MANIFEST.simple_class_path == f"{MoeLlava.__module__}.{MoeLlava.__qualname__}"
