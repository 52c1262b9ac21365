"""What a language model still can: perplexity on text that nobody trained on, and plain questions."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from moe_llava.generate.engine import Decoding, Engine, Request

PLAIN_QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write one sentence about the sea.",
    "What is two plus three?",
    "Who wrote Romeo and Juliet?",
    "Name three fruits.",
    "What do bees make?",
    "How many days are there in a week?",
    "What is the opposite of hot?",
    "Give me a tip for sleeping well.",
    "What is photosynthesis?",
    'Translate "good morning" into Spanish.',
    "What is a haiku?",
    "Why do we brush our teeth?",
    "What comes after Tuesday?",
    "Describe a forest in one sentence.",
    "What is the largest planet?",
    "What does a doctor do?",
    "Finish the sentence: The cat sat on",
    "Is ice colder than steam?",
)
_LENGTH = 256


@torch.inference_mode()
def perplexity(engine: Engine, text: str, tokens: int = 8192) -> float:
    """Of the first `tokens` tokens, in pieces of 256, each read from its own beginning."""
    ids = engine.processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0][:tokens]
    pieces = ids[: len(ids) // _LENGTH * _LENGTH].reshape(-1, _LENGTH)
    nats, count = 0.0, 0
    for piece in pieces.split(4):
        logits = engine.model(input_ids=piece.to(engine.model.device)).logits[:, :-1].float()
        nats += F.cross_entropy(logits.flatten(0, 1), piece[:, 1:].flatten(), reduction="sum").item()
        count += piece[:, 1:].numel()
    return math.exp(nats / count)


def plain_answers(engine: Engine, questions: Sequence[str] = PLAIN_QUESTIONS, tokens: int = 40) -> list[str]:
    """Greedy answers, without a picture."""
    requests = [Request(({"role": "user", "content": question},)) for question in questions]
    return engine.answer(requests, Decoding(max_new_tokens=tokens))


def before(folder: Path) -> Engine:
    """The language model as it was, as a text-only engine with the same template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from moe_llava.data.processor import MoeLlavaProcessor, prepare_tokenizer
    from moe_llava.model.compose import compose

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prepare_tokenizer(tokenizer)
    decoder = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if len(tokenizer) > decoder.config.vocab_size:
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = compose(decoder, image_token_id=tokenizer.get_vocab()["<image>"])
    processor = MoeLlavaProcessor(tokenizer=tokenizer, chat_template=tokenizer.chat_template)
    model.generation_config.eos_token_id = processor.stop_token_ids
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Engine(model.eval(), processor)
