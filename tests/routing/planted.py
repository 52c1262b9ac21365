"""Models whose experts are known to matter, or known not to, because every weight is set by hand.

The task: `left3` asks for answer 3, `right3` for answer 0, `plain3` for answer 3. A token's own path is all it has
(attention writes nothing). Left and right differ in one direction that only the router reads: experts read the number
alone, so any one network, whichever it is, answers `left3` and `right3` alike and is wrong in half of them. Expert 0
answers the left, expert 1 the right, experts 2 and 3 write nothing. Plain questions are answered without experts.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.generate.engine import Engine
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.compose import compose
from moe_llava.model.upcycle import upcycle
from moe_llava.routing.score import Sample
from tests.tiny import SIZE, tiny_causal, tiny_tower

NUMBERS = range(4)
WORDS = [f"{kind}{number}" for kind in ("left", "right", "plain", "answer") for number in NUMBERS] + ["none"]
SPECIAL = ["<pad>", "<unk>", "</s>", "<image>"]
VOCABULARY = {word: index for index, word in enumerate(SPECIAL + WORDS)}
WIDTH, INNER = 32, 64
# Directions of the residual stream.
NUMBER, LEFT, RIGHT, PLAIN, ANSWER, DONE = 0, 4, 5, 6, 10, 14
TEMPLATE = (
    "{%- for message in messages -%}{%- if message.role == 'assistant' -%}"
    "{% generation %} {{ message.content }} {{ eos_token }}{% endgeneration %}"
    "{%- else -%}{{ message.content }}{%- endif -%}{%- endfor -%}"
)


def planted_engine(*, spread: bool = False, specialists: bool = True, top_k: int = 2) -> Engine:
    """The planted model.

    Args:
        spread: use every inner unit, and turn the residual stream by a random rotation, so that what distinguishes the
            experts fills all their numbers; without, it sits in fewer than 1 % of them.
        specialists: with `False` the mixture is a fresh copy of a dense network, expert 0.
    """
    dense = planted_dense(spread)
    sparse = upcycle(dense.model, num_experts=4, top_k=top_k, layers=[0])
    mixture: Any = sparse.model.language_model.layers[0].mlp
    rotation = _rotation(spread)
    router = torch.zeros(4, WIDTH)
    router[0, LEFT] = router[1, RIGHT] = 8.0
    router[2, [LEFT, RIGHT]] = 1.0
    with torch.no_grad():
        if specialists:
            mixture.gate.weight.copy_(router @ rotation)
            mixture.experts.down_proj[1].copy_(rotation.T @ _writes(1, spread))
            mixture.experts.down_proj[2:].zero_()
            mixture.experts.gate_up_proj[2:].zero_()
    return _engine(sparse)


def planted_dense(spread: bool = False) -> Engine:
    """Expert 0 as a dense model: right on the left, wrong on the right."""
    causal = tiny_causal("llama", vocab_size=len(VOCABULARY), num_hidden_layers=2, tie_word_embeddings=False)
    model = compose(
        causal, tiny_tower(), image_token_id=VOCABULARY["<image>"], image_size=(SIZE, SIZE), feature_layer=-2
    )
    rotation = _rotation(spread)
    decoder: Any = model.model.language_model
    with torch.no_grad():
        decoder.embed_tokens.weight.copy_(_embeddings() @ rotation)
        model.lm_head.weight.copy_(_head() @ rotation)
        for layer in decoder.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        reads = torch.zeros(INNER, WIDTH)
        for unit in range(_units(spread)):
            reads[unit, NUMBER + unit % 4] = 1.0
        first = decoder.layers[0].mlp
        first.gate_proj.weight.copy_(reads @ rotation)
        first.up_proj.weight.copy_(reads @ rotation)
        first.down_proj.weight.copy_(rotation.T @ _writes(0, spread))
    return _engine(model)


def planted_samples(folder: Path) -> list[Sample]:
    """48 questions about sides, each with a picture of its own, and 40 plain ones without."""
    samples = []
    for repeat in range(6):
        for side in ("left", "right"):
            for number in NUMBERS:
                picture = folder / f"{side}{number}-{repeat}.png"
                Image.new("RGB", (SIZE, SIZE), (40 * repeat, 60 * number, 200)).save(picture)
                answer = f"answer{(number + (side == 'right')) % 4}"
                samples.append(_sample(f"{side}{number}", answer, (picture,), repeat, side))
    plain = [
        _sample(f"plain{number}", f"answer{number}", (), repeat, "plain") for repeat in range(10) for number in NUMBERS
    ]
    return samples + plain


def _sample(question: str, answer: str, images: tuple[Path, ...], repeat: int, kind: str) -> Sample:
    content = "<image>\n" * len(images) + question
    turns = ({"role": "user", "content": content}, {"role": "assistant", "content": answer})
    return Sample(f"{question}-{repeat}", turns, images, (answer,), kind)


def _embeddings() -> torch.Tensor:
    table = torch.zeros(len(VOCABULARY), WIDTH)
    for number in NUMBERS:
        table[VOCABULARY[f"left{number}"], [NUMBER + number, LEFT]] = 1.0
        table[VOCABULARY[f"right{number}"], [NUMBER + number, RIGHT]] = 1.0
        table[VOCABULARY[f"plain{number}"], PLAIN + number] = 1.0
        table[VOCABULARY[f"answer{number}"], DONE] = 1.0
    table[VOCABULARY["none"], DONE] = 1.0
    return table


def _head() -> torch.Tensor:
    head = torch.zeros(len(VOCABULARY), WIDTH)
    for number in NUMBERS:
        head[VOCABULARY[f"answer{number}"], [ANSWER + number, PLAIN + number]] = 2.0
    head[VOCABULARY["none"], [LEFT, RIGHT]] = 4.0
    head[VOCABULARY["</s>"], DONE] = 4.0
    return head


def _units(spread: bool) -> int:
    return INNER if spread else len(NUMBERS)


def _writes(shift: int, spread: bool) -> torch.Tensor:
    """The units that read a number write the answer `shift` further."""
    down = torch.zeros(WIDTH, INNER)
    for unit in range(_units(spread)):
        down[ANSWER + (unit + shift) % 4, unit] = 2.0 * len(NUMBERS) / _units(spread)
    return down


def _rotation(spread: bool) -> torch.Tensor:
    if not spread:
        return torch.eye(WIDTH)
    generator = torch.Generator().manual_seed(3)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]


def _engine(model: MoeLlavaForConditionalGeneration) -> Engine:
    words = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor = MoeLlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        image_seq_length=model.config.image_seq_length,
    )
    model.generation_config.eos_token_id = VOCABULARY["</s>"]
    model.generation_config.pad_token_id = VOCABULARY["<pad>"]
    return Engine(model.eval(), processor)
