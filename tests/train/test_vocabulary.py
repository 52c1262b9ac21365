"""A projector whose patches are mixtures of words, and the words' start from captions."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from moe_llava.checkpoint.folder import load_model
from moe_llava.model.projector import VocabularyProjector, build_projector, in_context
from moe_llava.recipe import Recipe, Trainable, load_recipe
from moe_llava.train.build import build_stage
from moe_llava.train.run import train
from moe_llava.train.stages import assign_groups
from moe_llava.train.start import build_start
from moe_llava.train.vocabulary import fit_scores, mean_embeddings, within_whitening
from tests.tiny import COLOURS, Tiny


class Words:
    """A tokenizer of whole words."""

    def __init__(self, *known: str) -> None:
        self.known = known

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [self.known.index(word) for word in text.split()]}


def with_vocabulary(tiny: Tiny, output: Path, words: int = 6) -> Recipe:
    recipe = load_recipe(tiny.recipe)
    assert recipe.model is not None
    model = recipe.model.model_copy(update={"projector": f"vocabulary{words}"})
    return recipe.model_copy(update={"model": model, "output": str(output)})


def test_a_patch_is_a_mixture_of_words() -> None:
    torch.manual_seed(0)
    projector = build_projector("vocabulary5", 8, 4)
    assert isinstance(projector, VocabularyProjector)
    features = torch.randn(2, 3, 8)
    mean, spread = (
        one.expand_as(features) for one in (features.mean(1, True), features.std(1, keepdim=True, correction=0))
    )
    scored = torch.cat([features / 5 + mean * 4 / 5, spread], dim=-1)
    shares = torch.softmax(scored @ projector.scores.weight.T + projector.scores.bias, dim=-1)
    torch.testing.assert_close(projector(features), shares @ projector.words.weight.T, atol=1e-5, rtol=0)
    for name in ("vocabulary0", "vocabulary"):
        with pytest.raises(ValueError, match="not supported"):
            build_projector(name, 8, 4)


def test_scores_are_of_the_features_as_they_come() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(30)
    features = 5 + 0.02 * (
        torch.randn(4, 6, generator=generator)[labels] + 0.1 * torch.randn(120, 6, generator=generator)
    )
    weight, bias, right = fit_scores(features, labels, 4, seed=0)
    assert right == 1.0
    assert torch.equal((features @ weight.T + bias).argmax(dim=1), labels)


def test_whitening_shrinks_how_pictures_of_one_word_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(50)
    hands = 3 * torch.randn(200, 1, generator=generator) * torch.tensor([1.0, 0, 0, 0, 0, 0])
    features = torch.randn(4, 6, generator=generator)[labels] + hands + torch.randn(200, 6, generator=generator)
    white = features @ within_whitening(features, labels, 4, shrinkage=0.0)
    rest = white - torch.stack([white[labels == word].mean(dim=0) for word in range(4)])[labels]
    torch.testing.assert_close(rest.T @ rest / 200, torch.eye(6) * (rest.square().sum() / 1200), atol=1e-4, rtol=0)
    torch.testing.assert_close(within_whitening(features, labels, 4, shrinkage=1.0), torch.eye(6))
    alone = fit_scores(torch.eye(4, 6), torch.arange(4), 4, seed=0)  # one picture a word: nothing to whiten by
    assert alone[2] == 1.0 and bool(torch.isfinite(alone[0]).all())


def test_a_single_patch_has_a_gradient() -> None:
    features = torch.randn(2, 1, 3, requires_grad=True)
    in_context(features).sum().backward()
    assert features.grad is not None and bool(torch.isfinite(features.grad).all())


def test_a_word_is_the_mean_of_its_caption_with_articles_all_but_gone() -> None:
    embeddings = torch.eye(5)
    rows = mean_embeddings(Words("a", "fox", "red", "cat", "owl"), ["a fox", "a red cat", "a owl"], embeddings)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(3))
    assert rows[0].argmax() == 1 and rows[0, 0] < 0.2
    assert rows[1, 2] == rows[1, 3] > 2 * rows[1, 0]


def test_the_first_stage_begins_with_its_captions_as_words(tiny: Tiny, tmp_path: Path) -> None:
    start = build_start(with_vocabulary(tiny, tmp_path), "align", Console(quiet=True))
    assert start.model is not None
    projector = start.model.model.multi_modal_projector
    used = projector.scores.bias > -100
    assert used.sum() == len(COLOURS)
    assert projector.words.weight[:, used].abs().sum() > 0
    again = build_start(with_vocabulary(tiny, tmp_path), "align", Console(quiet=True)).model
    assert again is not None
    assert torch.equal(again.model.multi_modal_projector.scores.weight, projector.scores.weight)


def test_the_most_frequent_captions_are_words_where_not_all_can_be(tiny: Tiny, tmp_path: Path) -> None:
    start = build_start(with_vocabulary(tiny, tmp_path, words=2), "align", Console(quiet=True))
    assert start.model is not None
    assert bool((start.model.model.multi_modal_projector.scores.bias > -100).all())


def test_words_train_are_saved_and_are_made_sparse(tiny: Tiny, tmp_path: Path) -> None:
    recipe = with_vocabulary(tiny, tmp_path / "run")
    train(recipe, console=Console(quiet=True))
    first, last = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("align", "sparsify"))
    for name in ("scores.weight", "words.weight"):
        assert not torch.equal(*(one[f"model.multi_modal_projector.{name}"] for one in (first, last)))
    model, _ = load_model(tmp_path / "run" / "sparsify")
    assert model.config.projector_type == "vocabulary6"
    assert torch.equal(model.model.multi_modal_projector.words.weight, last["model.multi_modal_projector.words.weight"])


def test_words_train_alone_or_at_a_rate_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    model, _ = build_stage(with_vocabulary(tiny, tmp_path), "align")
    path = "model.multi_modal_projector"
    assert assign_groups(model, {"words": Trainable(lr=1e-2)}) == {f"{path}.words.weight": "words"}
    both = assign_groups(model, {"words": Trainable(lr=1e-2), "projector": Trainable(lr=1e-4)})
    assert both[f"{path}.words.weight"] == "words" and both[f"{path}.scores.weight"] == "projector"
    assert set(assign_groups(model, {"projector": Trainable(lr=1e-4)}).values()) == {"projector"}
    plain, _ = build_stage(load_recipe(tiny.recipe), "align")
    with pytest.raises(ValueError, match="train.words: this model has no such parameters"):
        assign_groups(plain, {"words": Trainable(lr=1e-2)})


def test_a_first_stage_without_captions_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    recipe = with_vocabulary(tiny, tmp_path)
    stage = recipe.stages["align"]
    text = stage.data[0].model_copy(update={"path": str(tiny.folder / "text.json")})
    streamed = stage.data[0].model_copy(update={"stream": True})
    for data, problem in ((text, "has none"), (streamed, "do not stream")):
        changed = recipe.model_copy(update={"stages": {"align": stage.model_copy(update={"data": (data,)})}})
        with pytest.raises(ValueError, match=problem):
            build_start(changed, "align", Console(quiet=True))
