"""Questions a second: one at a time, as the original evaluates, against the engine that shares what questions share.

Random weights, 576 image tokens, answers of two tokens, greedy; the tower is tiny, so that the decoder decides. Rows
are benchmarks by their questions an image: POPE 17.8, GQA 31.6, MME 2.

OMP_NUM_THREADS=1 python benchmarks/eval_throughput.py --out throughput.json
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CLIPImageProcessor, CLIPVisionConfig

from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.data.tokenizer import train_tokenizer
from moe_llava.generate.engine import Decoding, Engine, Request
from moe_llava.generate.image_features import open_image
from moe_llava.model.accounting import account_model
from moe_llava.model.compose import compose
from moe_llava.model.upcycle import upcycle

SIDE, PATCH = 336, 14
THINGS = ("dog", "chair", "dining table", "person", "traffic light", "bicycle", "cup", "boat", "skis", "backpack")
TEXT = "{word} there {number} {thing} in the image?\nAnswer the question using a single word or phrase."
# Questions on each of the images that are measured; their mean is the benchmark's.
SHAPES = {"POPE": (18, 18, 18, 18, 17), "GQA": (32, 32, 31), "MME": (2, 2, 2, 2, 2, 2)}
NEW_TOKENS = 2


def build(width: int, layers: int) -> Engine:
    """A sparse Llama: every other feed-forward network is four experts, two of them used."""
    torch.manual_seed(0)
    texts = [question(n) for n in range(200)] + ["USER: ASSISTANT: A chat between a curious human and an assistant."]
    tokenizer = train_tokenizer(texts, 600)
    shape = AutoConfig.for_model(
        "llama",
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=len(tokenizer),
        eos_token_id=None,
    )
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    dense = compose(
        AutoModelForCausalLM.from_config(shape),
        AutoModel.from_config(tower),
        image_token_id=tokenizer.get_vocab()["<image>"],
        image_size=(SIDE, SIDE),
        feature_layer=-2,
    )
    model = upcycle(dense, num_experts=4, top_k=2, layers="alternate", noise=0.1).eval()
    pixels = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = MoeLlavaProcessor(pixels, tokenizer, chat_template="vicuna", image_seq_length=(SIDE // PATCH) ** 2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Engine(model.to(device), processor)


def question(number: int) -> str:
    word = ("Is", "Are", "Was", "Were")[number % 4]
    return TEXT.format(word=word, number=("a", "one", "any", "some")[number // 4 % 4], thing=THINGS[number % 10])


def requests(per_image: tuple[int, ...]) -> list[Request]:
    pictures = [Image.new("RGB", (640, 480), (40 * n, 90, 200 - 30 * n)) for n in range(len(per_image))]
    return [
        Request(({"role": "user", "content": f"<image>\n{question(number)}"},), (picture,))
        for picture, count in zip(pictures, per_image, strict=True)
        for number in range(count)
    ]


@torch.inference_mode()
def one_at_a_time(engine: Engine, asked: list[Request]) -> list[str]:
    """The original's way: each question is a batch of its own, its image is encoded and read again."""
    texts = []
    for request in asked:
        ids = torch.tensor([engine.prompt(request).ids], device=engine.model.device)
        pixels = engine.processor.image_processor([open_image(image) for image in request.images], return_tensors="pt")
        output = engine.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels["pixel_values"].to(engine.model.device),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            suppress_tokens=[engine.model.config.image_token_id],
        )
        texts.append(engine.processor.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return texts


def timed(run: Any) -> tuple[Any, float, float]:
    """Result, seconds, and peak memory in MB: of the process, or of the GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    # One thread's own time, where there is but one: the machine's other work does not count.
    clock = time.process_time if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter
    started = clock()
    result = run()
    seconds = clock() - started
    if torch.cuda.is_available():
        return result, seconds, torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return result, seconds, int(status) / 1e3


def measure(engine: Engine, name: str, sample: int, images: int, repeats: int) -> dict[str, Any]:
    shape = SHAPES[name][:images]
    asked = requests(shape)
    some = asked[:sample]
    ways: dict[str, list[tuple[float, float]]] = {"one at a time": [], "engine": []}
    for _ in range(repeats):
        alone, seconds, peak = timed(lambda: one_at_a_time(engine, some))
        ways["one at a time"].append((len(some) / seconds, peak))
        fresh = Engine(engine.model, engine.processor)
        shared, seconds, peak = timed(lambda fresh=fresh: fresh.answer(asked, Decoding(NEW_TOKENS)))
        ways["engine"].append((len(asked) / seconds, peak))
        assert shared[:sample] == alone, "the two ways must say the same"
    ratios = sorted(fast / slow for (slow, _), (fast, _) in zip(*ways.values(), strict=True))
    return {
        "benchmark": name,
        "questions an image": round(len(asked) / len(shape), 1),
        "tokens a prompt": len(engine.prompt(asked[0]).ids),
        **{f"{way}, questions/s": round(median(rate for rate, _ in of), 3) for way, of in ways.items()},
        "ratio": round(median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        **{f"{way}, peak MB": round(max(peak for _, peak in of)) for way, of in ways.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--sample", type=int, default=8, help="questions asked one at a time")
    parser.add_argument("--images", type=int, default=6, help="at most so many images of each benchmark")
    parser.add_argument("--repeats", type=int, default=3, help="of the two ways in turn; the median is reported")
    parser.add_argument("--only", choices=SHAPES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    engine = build(options.width, options.layers)
    account = account_model(engine.model)
    sizes = {"language parameters, M": account.language_total / 1e6, "activated, M": account.language_activated / 1e6}
    print(", ".join(f"{name}: {value:.0f}" for name, value in sizes.items()))
    one_at_a_time(engine, requests((1,)))  # warm
    rows = []
    for name in [options.only] if options.only else SHAPES:
        rows.append(measure(engine, name, options.sample, options.images, options.repeats))
        print(json.dumps(rows[-1]))
    if options.out:
        options.out.write_text(json.dumps({**sizes, "threads": torch.get_num_threads(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
