"""A converted checkpoint trains on, in one stage, on one's own conversations: in full, and through adapters."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from moe_llava import Decoding, load
from moe_llava.checkpoint.original import convert
from moe_llava.cli import main
from moe_llava.recipe import Trainable, load_recipe
from moe_llava.train.stages import prepare
from tests.checkpoint.recordings import Recording

RECIPE = Path(__file__).parents[2] / "recipes" / "finetune.toml"
ADAPTED = (
    "{ projector = 1e-3, ffn = { lr = 1e-2, lora_rank = 2 }, experts = { lr = 1e-2, lora_rank = 2 }, router = 1e-3 }"
)


@pytest.fixture(scope="module")
def converted(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded StableLM with a tokenizer of single characters, for its 256 tokens, converted."""
    golden = fixtures / "golden" / "stablelm" / "a"
    source = tmp_path_factory.mktemp("finetune") / "source"
    shutil.copytree(golden / "checkpoint", source)
    characters = ["<|endoftext|>", "<unk>", "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<|endoftext|>", "<unk>"])
    tokenizer.save(str(source / "tokenizer.json"))
    stated = {"eos_token": "<|endoftext|>", "unk_token": "<unk>"}
    (source / "special_tokens_map.json").write_text(json.dumps(stated))
    out = source.parent / "converted"
    assert convert(source, out, vision_tower=golden / "vision_tower").warnings == []
    return out


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations about pictures of the easy-VQA package."""
    package = pytest.importorskip("easy_vqa", reason="needs moe-llava[demo]")
    pictures = Path(package.__file__).parent / "data" / "train"
    folder = tmp_path_factory.mktemp("mine")
    rows = []
    for number, (question, answer, image) in enumerate(json.loads((pictures / "questions.json").read_text())[:16]):
        shutil.copy(pictures / "images" / f"{image}.png", folder)
        asked = {"from": "human", "value": f"<image>\n{question}"}
        turns = [asked, {"from": "gpt", "value": answer}]
        rows.append({"id": str(number), "image": f"{image}.png", "conversations": turns})
    (folder / "mine.json").write_text(json.dumps(rows))
    return folder / "mine.json"


@pytest.mark.parametrize("train", ["full", "adapters"])
def test_one_stage_on_one_s_own_conversations(train: str, converted: Path, mine: Path, tmp_path: Path) -> None:
    if train == "adapters":
        pytest.importorskip("peft", reason="needs moe-llava[lora]")
    own = ["--stages.finetune.train", ADAPTED] if train == "adapters" else []
    small = {"starts_from": converted, "data": f'[{{ path = "{mine}" }}]', "batch_size": 8, "micro_batch_size": 4}
    small |= {"precision": "fp32", "epochs": 3, "log_every": 1}
    arguments = [part for key, value in small.items() for part in (f"--stages.finetune.{key}", str(value))]
    assert main(["train", str(RECIPE), "--output", str(tmp_path), *arguments, *own]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (converted, tmp_path / "finetune"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".mlp.experts." in name for name in changed)
    assert any(".mlp.gate." in name for name in changed)
    assert any("layers.1.mlp" in name for name in changed)
    assert not any("self_attn" in name or "vision_tower" in name or "embed_tokens" in name for name in changed)
    tuned, source = load(tmp_path / "finetune"), load(converted)
    assert tuned.engine.processor.chat_template == source.engine.processor.chat_template
    assert tuned.engine.processor.image_processor.do_pad
    assert isinstance(tuned.chat("what shape is it?", mine.parent / "0.png", decoding=Decoding(max_new_tokens=3)), str)


def test_adapters_merge_into_the_same_function(recording: Callable[[str], Recording]) -> None:
    pytest.importorskip("peft", reason="needs moe-llava[lora]")
    for family in ("stablelm", "phi"):
        recorded = recording(family)
        model, batch = recorded.model, recorded.batch("batch")
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        adapted = Trainable(lr=1e-3, lora_rank=4)
        _, adapters = prepare(model, {"experts": adapted, "ffn": adapted, "router": Trainable(lr=1e-3)})
        assert adapters is not None
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            before = recorded.case("eval_batch")["logits"]
            with_adapters = model(**batch).logits
            adapters.merge()
            merged = model(**batch).logits
            real = batch["attention_mask"].bool()
            assert (with_adapters - before)[real].abs().max() > 0.1
            torch.testing.assert_close(merged, with_adapters, rtol=0, atol=1e-5)
        assert model.state_dict().keys() == state.keys()
        model.load_state_dict(state)


def test_a_recipe_needs_a_model_or_a_checkpoint(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.read_text().replace("starts_from", "# starts_from"))
    with pytest.raises(ValueError, match=r"give `model`, or stages\.finetune\.starts_from"):
        load_recipe(recipe)
    assert load_recipe(RECIPE).origin("finetune") == "models/stablelm-4e"


def test_a_dry_run_counts_what_will_train(converted: Path, mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--stages.finetune.starts_from", str(converted), "--stages.finetune.data", f'[{{ path = "{mine}" }}]']
    assert main(["train", str(RECIPE), "--dry-run", *arguments]) == 0
    printed = capfd.readouterr().out
    assert "experts" in printed
    assert "router" in printed
