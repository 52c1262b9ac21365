"""Memory, micro-batches and layouts that a dry run foretells."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, CLIPVisionConfig

from moe_llava.cli import main
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.config import sparse_text_config
from moe_llava.recipe import Distributed, Recipe, Stage, load_recipe
from moe_llava.train.advice import advise
from moe_llava.train.devices import parse_devices
from moe_llava.train.memory import Batch, Memory, Sizes, device_memory, owners_of
from moe_llava.train.plan import plan
from moe_llava.train.probe import LiveBytes, Probe, probe, shrunk
from moe_llava.train.run import build_trainer
from moe_llava.train.stages import prepare

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = {"projector": 1e-3, "language_model": 1e-3}
SPARSE = {"projector": 1e-3, "ffn": 1e-3, "experts": 1e-3, "router": 1e-3}
IMAGE, TEXT, SAMPLES = 16, 112, 4


def make_config(family: str = "llama", sparse: bool = True, width: int = 128) -> MoeLlavaConfig:
    text = AutoConfig.for_model(
        family,
        hidden_size=width,
        intermediate_size=width * 2,
        num_hidden_layers=4,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        vocab_size=1024,
        pad_token_id=0,
    )
    tower = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    return MoeLlavaConfig(
        text_config=(sparse_text_config(text) if sparse else text).to_dict(),
        vision_config=tower,
        image_token_id=1,
        image_seq_length=IMAGE,
        vision_hidden_size=32,
    )


def make_stage(**fields: Any) -> Stage:
    defaults = {
        "train": SPARSE,
        "data": [{"path": "none"}],
        "batch_size": SAMPLES,
        "steps": 2,
        "group_by_length": False,
    }
    return Stage.model_validate({**defaults, "starts_from": "elsewhere", **fields})


class Samples(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(2, 1024, (IMAGE + TEXT,), generator=generator)
        ids[:IMAGE] = 1
        labels = ids.masked_fill(ids == 1, -100)
        return {"input_ids": ids, "labels": labels, "image_features": torch.randn(1, IMAGE, 32, generator=generator)}


CASES = {
    "dense": ({"train": ALL}, {"sparse": False}),
    "sparse": ({}, {}),
    "biased experts": ({}, {"family": "phi"}),
    "checkpointing": ({"train": ALL, "gradient_checkpointing": True}, {"sparse": False}),
    "bf16": ({"precision": "bf16"}, {}),
    "accumulation": ({"batch_size": 2 * SAMPLES, "micro_batch_size": SAMPLES}, {}),
    "projector alone": ({"train": {"projector": 1e-3}}, {"sparse": False}),
}


@pytest.mark.parametrize("fields, changes", CASES.values(), ids=CASES.keys())
def test_memory_is_what_training_takes(fields: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    """Against all tensors that two real steps of the trainer keep alive, at most."""
    config, stage = make_config(**changes), make_stage(**fields)
    recipe = Recipe(name="memory", output=str(tmp_path), stages={"stage": stage})
    recipe.folder("stage").mkdir()
    live = LiveBytes()
    with live:
        model = MoeLlavaForConditionalGeneration(config)
        owners = owners_of(model)
        groups, _ = prepare(model, stage.train)
        sizes = Sizes.of(model, {id(one) for group in groups for one in group.parameters}, owners)
        samples = Samples(2 * stage.batch_size)
        trainer = build_trainer(recipe, "stage", model, groups, samples, pad_token_id=0)
        trainer.args.save_strategy = "no"
        trainer.train()
    batch = Batch(SAMPLES, IMAGE + TEXT, TEXT, accumulates=stage.batch_size > SAMPLES)
    memory = device_memory(config, stage, sizes, probe(config, stage), batch, Distributed(), 1)
    assert memory.total == pytest.approx(live.most, rel=0.1)


def test_a_twin_is_as_small_as_its_heads_allow() -> None:
    config, divisor = shrunk(make_config(width=256).text_config, 2, sparse=True)
    assert (divisor, config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (8, 32, 1, 2)


def memory_of(layout: Distributed, world: int, **fields: Any) -> Memory:
    config, stage = make_config(), make_stage(**fields)
    with torch.device("meta"):
        model = MoeLlavaForConditionalGeneration(config)
    owners = owners_of(model)
    groups, _ = prepare(model, stage.train)
    sizes = Sizes.of(model, {id(one) for group in groups for one in group.parameters}, owners)
    nothing = Probe(None, probe(config, stage).sparse, 0.0, 0.0)
    return device_memory(config, stage, sizes, nothing, Batch(1, 1, 0), layout, world)


def test_shares_of_weights_gradients_and_optimizer() -> None:
    alone, whole, shared = (
        memory_of(Distributed(layout=layout), world) for layout, world in (("ddp", 1), ("ddp", 4), ("fsdp", 4))
    )  # type: ignore[arg-type]
    assert alone.optimizer == 2 * alone.gradients == whole.optimizer
    assert (alone.communication, whole.communication) == (0, whole.gradients)
    for part in ("weights", "experts", "tower", "gradients", "optimizer"):
        assert getattr(shared, part) == pytest.approx(getattr(whole, part) / 4)
    together = memory_of(Distributed(layout="fsdp_ep"), 4)
    assert together.experts == shared.experts
    assert together.communication < shared.communication
    assert memory_of(Distributed(layout="fsdp", cpu_offload=True), 4).optimizer == 0
    assert memory_of(Distributed(layout="fsdp", replicas=2), 4).experts == pytest.approx(whole.experts / 2)


def test_the_layout_that_communicates_least_and_fits_is_advised() -> None:
    work = plan(load_recipe(RECIPES / "phi2-2.7b-x4.toml"), ["sparsify"])[0].work
    roomy = advise("sparsify", work, parse_devices("8xH200-141GB"), 0.35)
    tight = advise("sparsify", work, parse_devices("8xA100-80GB"), 0.35)
    none = advise("sparsify", work, parse_devices("8x4GB@100TF"), 0.35)
    assert roomy.advised and roomy.advised.layout.layout == "ddp"
    assert tight.advised and tight.advised.layout.layout == "fsdp"
    assert tight.advised.memory.total < 0.92 * 80e9
    assert none.advised is None
    assert roomy.hours is not None and tight.hours is not None
    # A tight device accumulates no more than a roomy one, and its arithmetic is the slower.
    assert 989 / 312 * 0.75 < tight.hours / roomy.hours <= 989 / 312 * 1.01
    with pytest.raises(ValueError, match="cannot be shared by 7 devices"):
        advise("sparsify", work, parse_devices("7xA100-80GB"), 0.35)


def test_devices_are_read() -> None:
    cluster = parse_devices("4x8xh100-80gb")
    assert (cluster.hosts, cluster.per_host, cluster.count, str(cluster)) == (4, 8, 32, "4x8xH100-80GB")
    assert parse_devices("2x24GB@100TF").device.bf16 == 100e12
    for wrong in ("A100-80GB", "0xA100-80GB", "8x", "8xNone-1GB"):
        with pytest.raises(ValueError, match="devices"):
            parse_devices(wrong)


def test_a_dry_run_shows_the_devices(capfd: pytest.CaptureFixture[str]) -> None:
    recipe = str(RECIPES / "stablelm-1.6b-x4.toml")
    assert main(["train", recipe, "--dry-run", "--devices", "8xA100-80GB", "--stages", "sparsify"]) == 0
    printed = capfd.readouterr().out
    assert "micro_batch_size = " in printed
    assert "fsdp_ep" in printed
    assert "hours at 35%" in printed
    assert main(["train", recipe, "--devices", "8xA100-80GB"]) == 1
    assert main(["train", recipe, "--dry-run", "--devices", "8xA100-80GB", "--utilisation", "2"]) == 1
