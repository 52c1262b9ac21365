"""What only a CUDA machine can show. Run with `pytest -m gpu`; skipped where there is none."""

import pytest
import torch

from moe_llava.bench.profiles import options_of
from moe_llava.bench.run import run
from moe_llava.generate.batch import Sequences
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.encoding import decode, encode, multiply
from tests.tiny import tiny_inputs, tiny_sparse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # torch.compile and kernels warn as they see fit
]
WIDTHS = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}


def sparse(family: str = "llama") -> MoeLlavaForConditionalGeneration:
    from moe_llava.model.upcycle import upcycle
    from tests.tiny import tiny_dense

    return upcycle(tiny_dense(family, **WIDTHS), noise=0.5).cuda().eval()


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: value.cuda() for name, value in tiny_inputs(dtype).items()}


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_kernels_agree_forward_and_backward(family: str) -> None:
    model = sparse(family)
    results = {}
    for kernel in ("eager", "grouped_mm", "batched_mm", "sorted_mm"):
        model.set_experts_implementation({"text_config": kernel})
        model.zero_grad()
        output = model(**inputs())
        output.loss.backward()
        results[kernel] = (
            output.logits.detach(),
            [one.grad.clone() for one in model.model.language_model.parameters()],
        )
    logits, gradients = results["eager"]
    for other, others in list(results.values())[1:]:
        assert torch.allclose(other, logits, atol=1e-3)
        assert all(torch.allclose(one, two, atol=1e-3) for one, two in zip(others, gradients, strict=True))


def test_bf16_kernels_agree() -> None:
    model = sparse().bfloat16()
    logits = {}
    for kernel in ("eager", "grouped_mm"):
        model.set_experts_implementation({"text_config": kernel})
        with torch.inference_mode():
            logits[kernel] = model(**inputs(torch.bfloat16)).logits.float()
    assert (logits["eager"] - logits["grouped_mm"]).norm() < 0.03 * logits["eager"].norm()


def test_the_gpu_computes_what_the_cpu_computes() -> None:
    model = sparse()
    with torch.inference_mode():
        gpu = model(**inputs()).logits.cpu()
        cpu = model.cpu()(**tiny_inputs()).logits
    assert torch.allclose(gpu, cpu, atol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_attention_kernels_agree(attention: str) -> None:
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model = sparse().bfloat16()
    logits = {}
    for name in ("eager", attention):
        model.set_attn_implementation(name)
        with torch.inference_mode():
            logits[name] = model(**inputs(torch.bfloat16)).logits.float()
    real = inputs()["attention_mask"].bool()
    difference = (logits["eager"] - logits[attention])[real]
    assert difference.norm() < 0.03 * logits["eager"][real].norm()


def test_the_decoder_compiles_without_a_break() -> None:
    model = sparse().bfloat16()
    embedded = torch.randn(2, 16, 128, device="cuda", dtype=torch.bfloat16)

    def forward(inputs_embeds: torch.Tensor) -> torch.Tensor:
        return model(inputs_embeds=inputs_embeds, use_cache=False).logits

    with torch.inference_mode():
        plain = forward(embedded)
        compiled = torch.compile(forward, fullgraph=True)(embedded)
    assert (plain.float() - compiled.float()).norm() < 0.03 * plain.float().norm()


def test_decoding_with_a_static_cache_gives_the_same_tokens() -> None:
    model = sparse()
    prompt = {name: inputs()[name][2:] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 8, "do_sample": False}
    dynamic = model.generate(**prompt, **options)
    static = model.generate(**prompt, **options, cache_implementation="static")
    assert torch.equal(dynamic, static)


def test_the_engine_reads_in_pieces_what_it_reads_at_once() -> None:
    model = sparse()
    pieces = Sequences(model, 1)
    pieces.read([[1, 11, 12]])
    assert torch.allclose(pieces.read([[13]]), Sequences(model, 1).read([[1, 11, 12, 13]]), atol=1e-3)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_quantised_products(scheme: str) -> None:
    weight, rows = torch.randn(64, 128, device="cuda"), torch.randn(5, 128, device="cuda")
    numbers, scales = encode(weight, scheme)
    product = multiply(rows, numbers, scales, None)
    assert torch.allclose(product, rows @ decode(numbers, scales, torch.float32).t(), atol=1e-2)


def test_the_bench_runs() -> None:
    small = {"rounds": 1, "parts": ["block", "train"], "tokens": "1,64"}
    report = run(options_of("gpu", small))
    assert report["block"] and report["train"]


def test_the_tiny_model_fits_its_gpu_twin() -> None:
    """Training steps on the GPU lower the loss."""
    model = tiny_sparse().cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    losses = []
    for _ in range(5):
        loss = model(**inputs()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
