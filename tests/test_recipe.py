"""Recipes: what is checked, what is overridden, what comes back."""

from pathlib import Path

import pytest

from moe_llava.recipe import load_recipe
from tests.tiny import Tiny

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_survive_being_written(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    copy = tmp_path / "recipe.toml"
    copy.write_text(recipe.to_toml())
    assert load_recipe(copy) == recipe


def test_any_field_is_overridden_by_its_dotted_name(tiny: Tiny) -> None:
    overrides = {
        "stages.align.train.projector": "5e-4",
        "seed": "7",
        "output": "elsewhere",
        "model.projector": "linear",
    }
    recipe = load_recipe(tiny.recipe, overrides)
    assert recipe.stages["align"].train["projector"].lr == 5e-4
    assert (recipe.seed, recipe.output, recipe.model.projector) == (7, "elsewhere", "linear")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("stages.align.lr", "1", "stages.align.lr"),
        ("stages.align.train.adapter", "1e-3", "stages.align.train"),
        ("stages.align.warmup_ratio", "1.5", "stages.align.warmup_ratio"),
        ("stages.align.train", "{}", "`train` is empty"),
        ("stages.align.batch_size", "0", "stages.align.batch_size"),
        ("report.models.dense", "nowhere", "is no stage"),
        ("model.language", "{}", "model_type"),
        ("name.first", "a", "not a table"),
    ],
)
def test_wrong_fields_are_named(tiny: Tiny, key: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(tiny.recipe, {key: value})


def test_what_is_no_toml_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("name = ")
    with pytest.raises(ValueError, match="not valid TOML"):
        load_recipe(path)
