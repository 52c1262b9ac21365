"""Questions without pictures, answered by the language model as it was: what it must not forget.

Its own greedy answers are the best reference there is for "as before", and no text of others is needed.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from moe_llava.data.demo.files import conversation, write_records
from moe_llava.data.smol.dictionary import Dictionary

_PATTERNS = (
    "What is {noun}?",
    'Use the word "{noun}" in a sentence.',
    "Tell me something about {noun}.",
    "Write two sentences about {noun}.",
    "Why would somebody need {noun}?",
    "What is the difference between {noun} and {other}?",
    "Name three things that go with {noun}.",
)
_TOKENS = 56
_BATCH = 32


def prompts(dictionary: Dictionary, taken: set[str], count: int, seed: int) -> list[str]:
    """Questions about common nouns that no picture shows."""
    rng = random.Random(f"speech {seed}")
    # A word with many senses is a common one.
    common = [word for word, senses in dictionary.senses.items() if len(senses) >= 4 and word.isalpha()]
    nouns = sorted(set(common) - taken)
    return [
        _PATTERNS[number % len(_PATTERNS)].format(noun=rng.choice(nouns), other=rng.choice(nouns))
        for number in range(count)
    ]


@torch.inference_mode()
def answers(decoder: Path, questions: Sequence[str], *, tokens: int = _TOKENS) -> list[str]:
    """Greedy answers of a causal language model in its own chat template; cut at the last whole sentence."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(decoder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32).eval()
    texts: list[str] = []
    for start in tqdm(range(0, len(questions), _BATCH), desc="speech"):
        chats = [[{"role": "user", "content": one}] for one in questions[start : start + _BATCH]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        for row in output[:, inputs["input_ids"].shape[1] :]:
            texts.append(tokenizer.decode(row, skip_special_tokens=True).strip())
    return texts


def whole_sentences(text: str) -> str:
    """The text up to its last full stop; empty if there is none."""
    end = max(text.rfind(mark) for mark in (". ", "! ", "? "))
    return text if text.endswith((".", "!", "?")) else text[: end + 1]


def write_speech(path: Path, decoder: Path, questions: Sequence[str]) -> int:
    """Write the conversations, unless they are there; returns how many."""
    if not path.exists():
        pairs = zip(questions, answers(decoder, questions), strict=True)
        kept = [(question, whole_sentences(answer)) for question, answer in pairs]
        records = [conversation(f"speech/{number}", [pair]) for number, pair in enumerate(kept) if pair[1]]
        write_records(path, records)
    return len(json.loads(path.read_text(encoding="utf-8")))
