"""Questions on one image share its tokens and the cache of their beginning, and still get the answers of one alone."""

import pytest
import torch

from moe_llava.data.images import load_image
from moe_llava.generate.batch import Row
from moe_llava.generate.engine import Decoding, Engine, Request
from moe_llava.generate.plan import Prompt, common_length, plan
from moe_llava.model.upcycle import upcycle
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import COLOURS, Tiny

NEW = 8
FAMILIES = {
    "llama": {},
    "stablelm": {},
    "phi": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24, "head_dim": 8, "num_hidden_layers": 4},
}


class TokenEngine(Engine):
    """Answers with the tokens themselves, which text may hide."""

    def text(self, row: Row) -> str:
        return str(row.tokens)


def build(tiny: Tiny, family: str) -> Engine:
    """A sparse model whose experts differ and whose answers hang on all of the prompt."""
    config = {"model_type": family, "num_key_value_heads": 2} | FAMILIES[family]
    overrides = {f"model.language.config.{key}": str(value) for key, value in config.items()}
    model, processor = build_stage(load_recipe(tiny.recipe, overrides), "align")
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.25)
    sparse = upcycle(model, num_experts=4, top_k=2, noise=0.5).eval()
    sparse.generation_config.eos_token_id = processor.stop_token_ids
    return TokenEngine(sparse, processor)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> Engine:
    return build(tiny, "llama")


def requests(tiny: Tiny) -> list[Request]:
    """Questions of many lengths: five on each of two images, one on a third, on two images at once, and on none."""
    texts = (
        "What?",
        "What colour is it?",
        "Is it red or is it blue?",
        "Hello",
        "What colour, what colour is it?",
    )
    red, green, blue, _ = (tiny.folder / "images" / f"{name}.png" for name in COLOURS)
    asked = [(f"<image>\n{text}", (picture,)) for text in texts for picture in (red, green)]
    asked += [("<image>\nWhat?", (blue,))]
    asked += [(f"<image>\nLike {text} <image>", (red, blue)) for text in texts[:3]]
    asked += [(text, ()) for text in texts]
    return [Request(({"role": "user", "content": text},), images) for text, images in asked]


@torch.inference_mode()
def without_cache(engine: Engine, request: Request) -> list[int]:
    """The reference: one request alone, everything read anew for each token."""
    prompt = engine.prompt(request)
    images = [load_image(image) for image in prompt.images]
    pixels = engine.processor.image_processor(images, return_tensors="pt")["pixel_values"] if images else None
    tokens: list[int] = []
    while len(tokens) < NEW:
        ids = torch.tensor([prompt.ids + tokens])
        logits = engine.model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0, -1]
        logits[engine.model.config.image_token_id] = -torch.inf
        token = int(logits.argmax())
        if token in engine.model.generation_config.eos_token_id:
            break
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_one_at_a_time_without_cache(tiny: Tiny, family: str) -> None:
    engine = build(tiny, family)
    asked = requests(tiny)
    alone = [str(without_cache(engine, request)) for request in asked]
    assert len(set(alone)) > 4
    assert engine.answer(asked, Decoding(NEW)) == alone
    assert engine.answer(asked, Decoding(NEW), batch_size=3) == alone
    assert TokenEngine(engine.model, engine.processor, share_prefixes=False).answer(asked, Decoding(NEW)) == alone


def test_an_image_is_read_once_for_all_its_questions(engine: Engine, tiny: Tiny) -> None:
    red = tiny.folder / "images" / "red.png"
    asked = [Request(({"role": "user", "content": f"<image>\nWhat colour {n}?"},), (red,)) for n in range(6)]
    read: list[int] = []
    handle = engine.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    engine.answer(asked, Decoding(1))
    shared, whole = sum(read), sum(len(engine.prompt(request).ids) for request in asked)
    handle.remove()
    prefix = common_length([engine.prompt(request).ids for request in asked], engine.model.config.image_token_id)
    assert shared == prefix + sum(len(engine.prompt(request).ids) - prefix for request in asked) < whole / 2


def test_answers_come_with_their_positions_as_they_end(engine: Engine, tiny: Tiny) -> None:
    asked = requests(tiny)
    answers = dict(engine.answers(asked, Decoding(NEW), batch_size=5))
    assert [answers[index] for index in range(len(asked))] == engine.answer(asked, Decoding(NEW))


def test_a_batch_takes_in_others_and_lets_rows_go(engine: Engine, tiny: Tiny) -> None:
    asked = requests(tiny)
    alone = engine.answer(asked, Decoding(NEW))
    rows = [Row(index, Decoding(NEW)) for index in range(len(asked))]
    prompts = [engine.prompt(request) for request in asked]
    batch = engine.start(prompts[:3], rows[:3])
    batch.step()
    batch.join(engine.start(prompts[8:14], rows[8:14]))
    batch.step()
    batch.leave(rows[1])
    batch.join(engine.start(prompts[3:4], rows[3:4]))
    while batch.rows:
        batch.step()
    for row in (rows[0], rows[2], rows[3], *rows[8:14]):
        assert row.ended and engine.text(row) == alone[row.index]
    assert rows[1].ended is None


def test_rows_are_sampled_each_at_its_own_temperature(engine: Engine, tiny: Tiny) -> None:
    prompt = engine.prompt(requests(tiny)[0])
    torch.manual_seed(0)
    rows = [Row(0, Decoding(NEW)), *(Row(n, Decoding(NEW, temperature=5.0, top_p=0.9)) for n in range(1, 5))]
    batch = engine.start([prompt] * 5, rows)
    while batch.rows:
        batch.step()
    assert rows[0].tokens == without_cache(engine, requests(tiny)[0])
    assert len({tuple(row.tokens) for row in rows}) > 2


def test_the_common_beginning_never_cuts_an_image() -> None:
    assert common_length([[1, 2, 3], [1, 2, 4]], 9) == 2
    assert common_length([[1, 2], [1, 2, 4]], 9) == 1
    assert common_length([[1, 9, 9, 9], [1, 9, 9, 9]], 9) == 1
    assert common_length([[1, 9, 9, 5], [1, 9, 9, 6]], 9) == 3


def test_waves_keep_families_together_and_within_bounds() -> None:
    beginning = list(range(20))
    prompts = [Prompt([*beginning, *[50 + n] * (1 + n)], (f"{n % 3}.png",)) for n in range(9)] + [Prompt([1, 2])]
    waves = list(plan(prompts, batch_size=4, max_tokens=60, image_token_id=999))
    batches = [batch for wave in waves for batch in wave.batches]
    assert sorted(index for batch in batches for index, _ in batch) == list(range(10))
    assert all(len(batch) * max(len(prompts[index].ids) for index, _ in batch) <= 60 for batch in batches)
    for wave in waves:
        for batch in wave.batches:
            for index, at in batch:
                assert at == -1 or prompts[wave.prefixes[at].prompt].images == prompts[index].images
    assert [len(wave.prefixes) for wave in waves] == [1, 1, 1, 0]
