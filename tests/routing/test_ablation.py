"""What happens without an expert, where it is known."""

import json
from pathlib import Path

import pytest
import torch

from moe_llava.checkpoint.folder import save_model
from moe_llava.cli import main
from moe_llava.generate.engine import Engine
from moe_llava.routing.ablation import Ablation, _at_random, ablate, read_target, without
from moe_llava.routing.intervene import measured
from moe_llava.routing.patch_maps import patch_maps
from moe_llava.routing.score import Sample, Scorer
from tests.routing.planted import planted_engine, planted_samples
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return planted_samples(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def found(samples: list[Sample]) -> dict[tuple[str, int], Ablation]:
    everything = ablate(planted_engine(top_k=1), samples)
    return {(one.mode, one.target[0][0] if one.target[0] else -1): one for one in everything}


@pytest.mark.parametrize("mode", ["zero", "mean", "next"])
def test_each_specialist_is_the_cause_of_its_own_answers(found: dict[tuple[str, int], Ablation], mode: str) -> None:
    for expert, mine, others in ((0, "left", "right"), (1, "right", "left")):
        one = found[mode, expert].difference
        assert one[mine].accuracy is not None and one[mine].accuracy.mean < -0.4
        assert one[others].all_zero
        assert one["plain"].all_zero
        assert found[mode, expert].beyond is not None


def test_experts_that_no_answer_needs_change_exactly_nothing(samples: list[Sample]) -> None:
    engine = planted_engine(top_k=1)
    for one in ablate(engine, samples, targets=[{0: [2, 3]}]):
        if one.mode in ("zero", "next"):
            assert one.difference["left"].all_zero
            assert one.difference["right"].all_zero


def test_an_expert_that_no_token_takes_changes_exactly_nothing(samples: list[Sample]) -> None:
    engine = planted_engine(top_k=1)
    router = engine.model.model.language_model.layers[0].mlp.gate
    with torch.no_grad():
        router.weight[3] = router.weight[0] - 1e-3 * router.weight[0].sign() - 1.0
        router.weight[2] = router.weight[0]  # as good as the first, which comes first
    unused = [one for one in ablate(engine, samples, targets=[{0: [2]}, {0: [3]}]) if one.load == 0.0]
    assert unused
    for one in unused:
        assert all(difference.all_zero for difference in one.difference.values())
        assert one.control is not None and one.control["all"].all_zero


def test_a_random_router_breaks_both_sides(found: dict[tuple[str, int], Ablation]) -> None:
    one = found["router", -1]
    assert one.difference["left"].log_probability.mean < -1
    assert one.difference["right"].log_probability.mean < -1
    assert one.difference["plain"].all_zero


@pytest.mark.parametrize("once", [True, False])
def test_the_control_takes_as_many_assignments(once: bool) -> None:
    chosen = torch.zeros(20_000, 2, dtype=torch.int64)
    mask = _at_random(0.3, once, torch.Generator().manual_seed(0))(chosen)
    assert abs(mask.float().mean().item() - 0.3) < 0.01
    both = mask.all(dim=1).float().mean().item()
    assert both == 0.0 if once else abs(both - 0.09) < 0.01


def test_assignments_taken_at_random_harm_only_what_needs_experts(samples: list[Sample]) -> None:
    engine = planted_engine(top_k=1)
    control = _at_random(0.25, True, torch.Generator().manual_seed(0))
    scorer = Scorer(engine, samples, generate=False)
    with measured(engine.model):
        before = scorer.score().log_probability
        with without(engine.model, {0: control}, "zero"):
            after = scorer.score().log_probability
    harmed = (after < before - 1).astype(float)
    assert 0.05 < harmed[:48].mean() < 0.5
    assert not harmed[48:].any()


def test_a_patch_owes_nothing_where_an_expert_was_not_chosen(samples: list[Sample]) -> None:
    engine = planted_engine()
    # Without attention no answer owes anything to any patch.
    for one in patch_maps(engine, samples[:2]):
        assert all(bool((owes == 0).all()) for owes in one.owes.values())
    attention = engine.model.model.language_model.layers[1].self_attn.o_proj
    with torch.no_grad():
        attention.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    engine.model.model.language_model.layers[0].mlp.experts.down_proj.data.normal_(
        std=0.5, generator=torch.Generator().manual_seed(1)
    )
    (one,) = patch_maps(engine, samples[:1], "zero")
    owes = one.owes[0]
    assert owes.shape == (4, engine.model.config.image_seq_length)
    assert owes.any()
    assert ((owes != 0).sum(dim=0) <= 2).all()


def test_modes_and_targets_are_checked(samples: list[Sample]) -> None:
    engine = planted_engine()
    assert read_target("0:1,0:3,2:0") == {0: [1, 3], 2: [0]}
    for text in ("0", "0:x", "0-1"):
        with pytest.raises(ValueError, match="LAYER:EXPERT"):
            read_target(text)
    with pytest.raises(ValueError, match="no mode"):
        ablate(engine, samples[:2], modes=["half"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="not sparse"):
        ablate(engine, samples[:2], targets=[{1: [0]}])
    with pytest.raises(ValueError, match="no experts"):
        ablate(engine, samples[:2], targets=[{0: [4]}])
    with pytest.raises(ValueError, match="fewer than"):
        ablate(engine, samples[:2], targets=[{0: [0, 1, 2]}], modes=["next"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine: Engine = planted_engine()
    folder = tmp_path_factory.mktemp("planted-model")
    save_model(folder, engine.model, engine.processor)
    return folder


def test_the_command_writes_page_figures_and_maps(
    folder: Path, samples: list[Sample], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": one.id, "question": one.id.split("-")[0], "answer": one.accepted[0], "image": str(one.images[0])}
        for one in samples[:24]
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    arguments = ["route", str(folder), "--data", str(data), "--out", str(out), "--ablate", "--modes", "mean,router"]
    assert main([*arguments, "--maps", "1", "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures == json.loads((out / "ablation.json").read_text())
    assert [one["mode"] for one in figures["ablations"]] == ["mean"] * 4 + ["router"]
    page = (out / "ablation.html").read_text()
    assert page.count('src="data:image/png') == page.count("src=") == 1 and "http" not in page
    assert (out / "map-0.svg").is_file()
    assert main(arguments) == 1
    assert "choose another" in capfd.readouterr().err
    audit = ["audit", str(folder), "--data", str(data), "--out", str(tmp_path / "audit.html")]
    assert main(audit) == 0
    assert "Yes." in capfd.readouterr().out
    assert "http" not in (tmp_path / "audit.html").read_text()
    assert main(audit) == 1
    assert main(["audit", str(folder), "--data", str(data), "--out", str(tmp_path / "a.pdf")]) == 1


def test_a_dense_model_is_one_sentence(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tests.routing.planted import planted_dense

    dense = planted_dense()
    save_model(tmp_path, dense.model, dense.processor)
    data = ["--data", str(tiny.folder / "questions.jsonl")]
    assert main(["audit", str(tmp_path), *data, "--out", str(tmp_path / "a.html")]) == 1
    assert main(["route", str(tmp_path), *data, "--out", str(tmp_path / "o"), "--ablate"]) == 1
    assert capfd.readouterr().err.count("dense") == 2
