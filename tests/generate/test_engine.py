"""One engine for chat and evaluation: the same answers in any batch, each image encoded once."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from moe_llava.generate.engine import Decoding, Engine, Request, place_images
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import COLOURS, Tiny


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> Engine:
    model, processor = build_stage(load_recipe(tiny.recipe), "align")
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return Engine(model.eval(), processor)


def requests(tiny: Tiny) -> list[Request]:
    pictures = [tiny.folder / "images" / f"{name}.png" for name in COLOURS]
    asked = [("<image>\nWhat colour?", (picture,)) for picture in pictures]
    asked += [("Hello, who is there?", ()), ("<image>\n<image>\nWhich?", tuple(pictures[:2]))]
    return [Request(({"role": "user", "content": text},), images) for text, images in asked]


def test_batches_give_the_answers_of_one_at_a_time(engine: Engine, tiny: Tiny) -> None:
    decoding = Decoding(max_new_tokens=6)
    alone = [engine.answer([request], decoding)[0] for request in requests(tiny)]
    assert engine.answer(requests(tiny), decoding, batch_size=4) == alone
    assert len(set(alone)) > 1


def test_a_stream_is_the_answer_in_pieces(engine: Engine, tiny: Tiny) -> None:
    decoding = Decoding(max_new_tokens=6)
    for request in requests(tiny)[:2]:
        assert "".join(engine.stream(request, decoding)).strip() == engine.answer([request], decoding)[0]


def test_a_closed_stream_stops(engine: Engine, tiny: Tiny) -> None:
    engine.model.generation_config.eos_token_id, ends = None, engine.model.generation_config.eos_token_id
    pieces = engine.stream(requests(tiny)[0], Decoding(max_new_tokens=150))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    engine.model.generation_config.eos_token_id = ends


def test_identical_images_are_encoded_once(engine: Engine, tiny: Tiny) -> None:
    seen: list[int] = []
    tower = engine.model.model.vision_tower
    handle = tower.register_forward_hook(lambda module, inputs, output: seen.append(len(output.last_hidden_state)))
    red = tiny.folder / "images" / "red.png"
    copy = Image.open(red).convert("RGB")
    fresh = Engine(engine.model, engine.processor)
    question = ({"role": "user", "content": "<image>\nWhat?"},)
    fresh.answer([Request(question, (red,)), Request(question, (red,)), Request(question, (copy,))], Decoding(2))
    fresh.answer([Request(question, (red,)), Request(question, (red.read_bytes(),))], Decoding(2))
    handle.remove()
    assert sum(seen) == 2  # the file, and the picture in memory


def test_the_cache_of_images_is_bounded(engine: Engine, tiny: Tiny) -> None:
    small = Engine(engine.model, engine.processor, cache_bytes=1)
    answers = small.answer(requests(tiny), Decoding(max_new_tokens=4))
    assert answers == engine.answer(requests(tiny), Decoding(max_new_tokens=4))


def test_what_does_not_fit_is_refused(engine: Engine, tiny: Tiny) -> None:
    def ask(text: str, *images: str | Path | bytes) -> None:
        engine.answer([Request(({"role": "user", "content": text},), images)], Decoding(2))

    with pytest.raises(ValueError, match="nowhere.png"):
        ask("<image>", tiny.folder / "nowhere.png")
    with pytest.raises(ValueError, match="recipe.toml"):
        ask("<image>", tiny.recipe)
    with pytest.raises(ValueError, match="cannot decode an image of 4 bytes"):
        ask("<image>", b"PNG?")
    with pytest.raises(ValueError, match="<image>"):
        ask("no marker", tiny.folder / "images" / "red.png")
    with pytest.raises(ValueError, match="200"):
        ask("word " * 300)


def test_images_stand_in_front_unless_the_prompt_places_them() -> None:
    assert place_images("What?", 2) == "<image>\n<image>\nWhat?"
    assert place_images("Is <image> like <image>?", 2) == "Is <image> like <image>?"
