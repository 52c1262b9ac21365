"""A dry run counts what a real one would have, from shapes alone."""

import json
from pathlib import Path

import pytest

from moe_llava.model.accounting import account, account_model
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from moe_llava.train.plan import inspect, plan, stage_config
from tests.checkpoint.published import original_config, original_names, write_original, write_tower
from tests.tiny import Tiny, tiny_dense, tiny_sparse

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    "name, activated, total, image_tokens",
    [
        ("stablelm-1.6b-x4", 2.06, 2.89, 576),
        ("qwen-1.8b-x4", 2.24, 3.05, 576),
        ("phi2-2.7b-x4", 3.62, 5.30, 576),
        ("stablelm-1.6b-x4-384", 2.06, 2.89, 728),
        ("phi2-2.7b-x4-384", 3.62, 5.30, 728),
    ],
)
def test_published_models_have_their_published_sizes(
    name: str, activated: float, total: float, image_tokens: int
) -> None:
    """2.0 / 2.9 B, 2.2 / 3.1 B and 3.6 / 5.3 B in the paper's tables 1 and 8."""
    accounting = inspect(str(RECIPES / f"{name}.toml"))
    assert accounting.language_activated / 1e9 == pytest.approx(activated, abs=0.01)
    assert accounting.language_total / 1e9 == pytest.approx(total, abs=0.01)
    assert accounting.image_tokens == image_tokens


def test_published_recipes_plan_the_papers_steps() -> None:
    align, instruct, sparsify = plan(load_recipe(RECIPES / "stablelm-1.6b-x4.toml"))
    assert align.steps == 2181  # 558,128 samples in batches of 256
    assert [group.name for group in sparsify.groups] == ["projector", "ffn", "experts", "router"]
    assert instruct.memory.total < sparsify.memory.total
    assert instruct.tokens is not None and instruct.tokens > 5e8


@pytest.mark.parametrize("model", [tiny_dense(), tiny_sparse(), tiny_sparse("phi"), tiny_dense("gemma2", head_dim=8)])
def test_shapes_alone_give_what_a_model_holds(model: object) -> None:
    counted = sum(parameter.numel() for parameter in model.parameters())  # type: ignore[attr-defined]
    assert account(model.config) == account_model(model)  # type: ignore[attr-defined]
    assert account(model.config).total == counted  # type: ignore[attr-defined]


def test_activated_is_what_top_k_leaves() -> None:
    accounting = account_model(tiny_sparse(top_k=1))
    assert accounting.activated_experts * 4 == accounting.parts["experts"]
    assert accounting.activated == accounting.total - 3 * accounting.activated_experts
    assert json.dumps(accounting.as_dict())


def test_a_plan_is_what_the_run_then_does(tiny: Tiny) -> None:
    recipe = load_recipe(tiny.recipe, {"stages.align.steps": "6"})
    planned = plan(recipe)[0]
    model, _ = build_stage(recipe, "align")
    assert planned.accounting.parts["projector"] == account_model(model).parts["projector"]
    assert planned.samples == 32
    assert planned.steps == 6
    assert stage_config(recipe, "align").image_seq_length == model.config.image_seq_length


def test_unknown_sizes_and_circles() -> None:
    recipe = load_recipe(RECIPES / "stablelm-1.6b-x4.toml", {"stages.align.data": '[{ path = "absent.json" }]'})
    assert plan(recipe, ["align"])[0].steps is None
    circle = load_recipe(RECIPES / "stablelm-1.6b-x4.toml", {"stages.align.starts_from": "sparsify"})
    with pytest.raises(ValueError, match="circle"):
        plan(circle, ["align"])


def test_a_published_layout_is_counted_as_what_it_converts_to(tmp_path: Path) -> None:
    model = tiny_sparse()
    write_tower(tmp_path / "tower")
    config = original_config(model, str(tmp_path / "tower"))
    write_original(tmp_path / "source", original_names(model), config)
    assert inspect(str(tmp_path / "source")) == account_model(model)


def test_a_source_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Cannot read a model's configuration"):
        inspect(str(tmp_path))
    with pytest.raises(ValueError, match="hf download"):
        inspect("nobody/nothing")
