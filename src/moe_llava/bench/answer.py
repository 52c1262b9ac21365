"""Answers at the real shapes, random weights: time to the first token, tokens a second, memory, beside the limits.

The limit of the first token is its operations over the measured rate of matrix products; that of the others is the
bytes of weights and cache that a token must read over the measured rate of reading. Every model is measured in a
process of its own, its rounds in turn with those two rates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from moe_llava.bench.machine import MATRIX, STREAM_BYTES
from moe_llava.bench.memory import fresh, peak_bytes, weight_bytes
from moe_llava.bench.models import SPARSE, random_model, random_quantized, shape_config
from moe_llava.bench.timing import Spread, interleave, timed
from moe_llava.generate.batch import Sequences
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.accounting import Accounting, account
from moe_llava.model.encoding import Scheme
from moe_llava.model.experts import Experts
from moe_llava.model.packed import pack_modules, packs
from moe_llava.model.quantized import QuantizedEmbedding, QuantizedExperts


@dataclass(frozen=True)
class Subject:
    """One model to measure: a shape of `models.SHAPES`, dense where `experts` is 0."""

    shape: str
    experts: int = 0
    quantize: Scheme | None = None
    layers: int | None = None

    @property
    def name(self) -> str:
        return (
            self.shape + (f" x {self.experts}" if self.experts else "") + (f", {self.quantize}" * bool(self.quantize))
        )


@dataclass(frozen=True)
class Question:
    """An image of 576 tokens and some text, then the tokens of an answer."""

    text_tokens: int = 64
    new_tokens: int = 16
    dtype: torch.dtype = torch.bfloat16


def subjects(
    shapes: Sequence[str], quantize: Sequence[Scheme | str] = (), sparse_only: bool = False, layers: int | None = None
) -> list[Subject]:
    """Of each shape the mixture of four, where one was published, in bf16 and quantised, and the dense backbone."""
    found = []
    for shape in shapes:
        if shape in SPARSE:
            found += [Subject(shape, 4, scheme, layers) for scheme in (None, *quantize)]  # type: ignore[arg-type]
        if shape not in SPARSE or not sparse_only:
            found.append(Subject(shape, layers=layers))
    return found


def measure(
    subjects: Sequence[Subject],
    question: Question,
    *,
    rounds: int,
    device: torch.device,
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row a model, see `measure_one`."""
    rows = []
    for subject in subjects:
        progress(f"answer: {subject.name}")
        rows.append(fresh(measure_one, subject, question, rounds, str(device), torch.get_num_threads()))
    return rows


def measure_one(subject: Subject, question: Question, rounds: int, device_name: str, threads: int) -> dict[str, Any]:
    """Build a model, answer, and compare with what the machine could do."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    config = shape_config(subject.shape, experts=subject.experts, layers=subject.layers)
    accounting = account(config)
    if subject.quantize:
        model = random_quantized(config, subject.quantize, question.dtype, device)
    else:
        model = random_model(config, question.dtype, device)
    context = config.image_seq_length + question.text_tokens
    operations, reads = first_token_operations(accounting, context), token_bytes(model, accounting, context)
    weights = weight_bytes(model)
    if not subject.quantize and packs(model):
        pack_modules(model)  # as `chat`, `serve` and `eval` do
    first, following = _runs(model, question, device)
    runs = {"first": first, "following": following} | _rates(question.dtype, device)
    timings = interleave(runs, rounds)
    token = timings.spread("following").scaled(1 / question.new_tokens)
    product = 2 * MATRIX[0] * MATRIX[1] * MATRIX[2]
    first_limit = [product_seconds * operations / product for product_seconds in timings.seconds["product"]]
    token_limit = [seconds * reads / STREAM_BYTES for seconds in _best(timings.seconds)]
    share = [limit / one for limit, one in zip(first_limit, timings.seconds["first"], strict=True)]
    each = [one / question.new_tokens for one in timings.seconds["following"]]
    token_share = [limit / one for limit, one in zip(token_limit, each, strict=True)]
    return {
        "model": subject.name,
        "parameters": accounting.total,
        "activated": accounting.activated,
        "prompt_tokens": context,
        "first_token_seconds": timings.spread("first").as_dict(),
        "seconds_per_token": token.as_dict(),
        "tokens_per_second": 1 / token.median,
        "first_token_operations": operations,
        "bytes_per_token": reads,
        "matmul_per_second": Spread.of([product / one for one in timings.seconds["product"]]).as_dict(),
        "read_per_second": Spread.of([STREAM_BYTES / one for one in _best(timings.seconds)]).as_dict(),
        "first_token_share_of_limit": Spread.of(share).as_dict(),
        "token_share_of_limit": Spread.of(token_share).as_dict(),
        "weight_bytes": weights,
        "peak_bytes": peak_bytes(device),
        "rounds": rounds,
    }


def _runs(model: MoeLlavaForConditionalGeneration, question: Question, device: torch.device) -> Any:
    size = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, size, size, device=device).to(question.dtype)
    image = [model.config.image_token_id] * model.config.image_seq_length
    ids = [[1, *image, *range(2, question.text_tokens + 1)]]
    held: list[Sequences] = []

    @torch.inference_mode()
    def first() -> None:
        held[:] = [Sequences(model, 1)]
        tokens = model.get_image_features(pixels).pooler_output
        held[0].read(ids, tokens).argmax().item()  # type: ignore[arg-type]

    @torch.inference_mode()
    def following() -> None:
        for number in range(question.new_tokens):
            held[0].read([[number + 2]]).argmax().item()

    return timed(first), timed(following)


def _rates(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """One product, and two ways to read memory beyond the caches, of which the faster counts."""
    tokens, columns, rows = MATRIX
    left, weight = torch.randn(tokens, columns).to(device, dtype), torch.randn(rows, columns).to(device, dtype)
    flat = torch.ones(STREAM_BYTES // 8, dtype=torch.int64, device=device)
    matrix = torch.ones(STREAM_BYTES // 2 // columns, columns, dtype=torch.bfloat16, device=device)
    vectors = torch.ones(4, columns, dtype=torch.bfloat16, device=device)
    return {
        "product": timed(lambda: F.linear(left, weight)),
        "sum": timed(lambda: flat.sum()),
        "vectors": timed(lambda: F.linear(vectors, matrix)),
    }


def _best(seconds: dict[str, list[float]]) -> list[float]:
    """Seconds of reading, round by round."""
    return [min(pair) for pair in zip(seconds["sum"], seconds["vectors"], strict=True)]


def first_token_operations(accounting: Accounting, context: int, tower_tokens: int = 577) -> int:
    """Multiply-adds times two of tower, projector, decoder and the last token's head; attention is causal."""
    parts = accounting.parts
    decoder = parts["attention_and_norms"] + parts["ffn"] + accounting.activated_experts + parts["routers"]
    attention = 2 * accounting.num_layers * accounting.hidden_size * context * context
    tower = 2 * parts["vision_tower"] * tower_tokens + 4 * 24 * 1024 * tower_tokens * tower_tokens
    projector = 2 * parts["projector"] * accounting.image_tokens
    head = 2 * (parts["lm_head"] or parts["embeddings"])
    return tower + projector + 2 * decoder * context + attention + head


def token_bytes(model: MoeLlavaForConditionalGeneration, accounting: Accounting, context: int) -> int:
    """What decoding one token has to read: the decoder with chosen experts only, the head, and the cache."""
    share = accounting.top_k / accounting.num_experts
    total = 0.0
    for module in [*model.model.language_model.modules(), *model.lm_head.modules()]:
        if module is model.get_input_embeddings() or isinstance(module, QuantizedEmbedding):
            continue
        size = sum(one.nbytes for one in [*module.parameters(False), *module.buffers(False)])
        size += getattr(module, "packed_bytes", 0)
        total += size * (share if isinstance(module, (Experts, QuantizedExperts)) else 1)
    return round(total) + context * accounting.cache_bytes_per_token(model.dtype.itemsize)
