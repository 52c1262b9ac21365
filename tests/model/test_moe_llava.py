"""The model as users of transformers use it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from moe_llava.model import MoeLlavaForConditionalGeneration
from tests.tiny import IMAGE_ID, tiny_dense, tiny_inputs, tiny_sparse


def test_router_logits_come_layer_by_layer() -> None:
    output = tiny_sparse()(**tiny_inputs())
    assert [tuple(logits.shape) for logits in output.router_logits] == [(42, 4), (42, 4)]
    assert output.loss.item() == pytest.approx(output.language_loss.item() + 0.01 * output.aux_loss.item())
    assert tiny_dense()(**tiny_inputs()).router_logits is None


def test_saved_and_loaded_it_computes_the_same(tmp_path: Path) -> None:
    model, inputs = tiny_sparse("phi").eval(), tiny_inputs()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(again, MoeLlavaForConditionalGeneration)
    assert torch.allclose(again(**inputs).logits, model(**inputs).logits, atol=1e-6)
    assert again.config.text_config.to_dict() == model.config.text_config.to_dict()


def test_features_computed_before_equal_pixels() -> None:
    model, inputs = tiny_sparse().eval(), tiny_inputs()
    features = model.model.get_patch_features(inputs["pixel_values"])
    with_features = {**inputs, "image_features": features}
    del with_features["pixel_values"]
    assert torch.equal(model(**with_features).logits, model(**inputs).logits)


def test_generation_with_and_without_cache_agree() -> None:
    model, inputs = tiny_sparse().eval(), tiny_inputs()
    model.generation_config.eos_token_id = None
    prompt = {"input_ids": inputs["input_ids"][:1], "pixel_values": inputs["pixel_values"][:2]}
    cached = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=False), cached)
    ids = prompt["input_ids"]
    for _ in range(8):
        logits = model(input_ids=ids, pixel_values=prompt["pixel_values"]).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ids, cached)


def test_logits_at_answers_only_give_the_same_loss_and_gradient() -> None:
    model, inputs = tiny_sparse(), tiny_inputs()
    full = model(**inputs)
    full.loss.backward()
    expected = model.lm_head.weight.grad.clone()
    model.zero_grad()
    short = model(**inputs, skip_logits=True)
    short.loss.backward()
    assert short.logits is None
    assert torch.allclose(short.loss, full.loss)
    assert torch.allclose(model.lm_head.weight.grad, expected, atol=1e-7)


def test_images_and_placeholders_must_agree() -> None:
    model, inputs = tiny_sparse(), tiny_inputs()
    with pytest.raises(ValueError, match="12 image tokens and the images give 8"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][:2])
    with pytest.raises(ValueError, match="no image"):
        model(input_ids=torch.tensor([[1, IMAGE_ID]]))
    with pytest.raises(ValueError, match="exactly one"):
        model()


def test_a_batch_without_images_reaches_the_projector_too() -> None:
    """Else processes whose batches differ in kind would wait for each other's gradients."""
    model = tiny_sparse().train()
    model(input_ids=torch.tensor([[1, 5, 6]]), labels=torch.tensor([[-100, 5, 6]])).loss.backward()
    assert torch.equal(model.model.multi_modal_projector[0].weight.grad, torch.zeros(32, 32))


def test_a_coefficient_of_zero_leaves_the_loss_in_the_log_and_out_of_the_gradient() -> None:
    model, inputs = tiny_sparse(balance_coefficient=0.0), tiny_inputs()
    output = model(**inputs)
    assert output.aux_loss.item() >= 2.0
    assert torch.equal(output.loss, output.language_loss)
    routers = [module.weight for name, module in model.named_modules() if name.endswith("mlp.gate")]
    with_loss = torch.autograd.grad(output.loss, routers, retain_graph=True)
    language = torch.autograd.grad(output.language_loss, routers)
    assert all(torch.equal(left, right) for left, right in zip(with_loss, language, strict=True))


def test_z_loss_is_optional_and_counts() -> None:
    inputs = tiny_inputs()
    without, with_z = tiny_sparse(), tiny_sparse(z_loss_coefficient=0.1)
    assert with_z(**inputs).loss.item() > without(**inputs).loss.item() + 0.01


@pytest.mark.parametrize("family", ["stablelm", "phi", "qwen3", "gemma2"])
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    """Under the original's re-entrant checkpointing the balance loss has no gradient at all."""
    model, inputs = tiny_sparse(family).train(), tiny_inputs()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "language_model" in name})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, atol=1e-6), name


def test_lora_reaches_the_experts_and_merges(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs moe-llava[lora]")
    model, inputs = tiny_sparse().eval(), tiny_inputs()
    before = model(**inputs).logits.detach()
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = adapted(**inputs).logits.detach()
    assert not torch.allclose(expected, before, atol=1e-3)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    merged = peft.PeftModel.from_pretrained(tiny_sparse().eval(), tmp_path).merge_and_unload()
    assert torch.allclose(merged(**inputs).logits, expected, atol=1e-5)
