"""The trace against the routers themselves, whatever the batches; files that are whole or not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_llava.assistant import Assistant
from moe_llava.generate.engine import Decoding, Engine
from moe_llava.model.decoder import decoder_layers
from moe_llava.model.router import choose_experts
from moe_llava.model.vision import patch_grid
from moe_llava.recipe import load_recipe
from moe_llava.routing.recorder import Choices
from moe_llava.routing.routes import RouteFile, RouteWriter, TokenRows
from moe_llava.routing.run import read_data, trace_data
from moe_llava.routing.trace import TokenTexts, Trace
from moe_llava.train.build import build_stage
from tests.tiny import IMAGE_TOKENS, Tiny, tiny_inputs, tiny_sparse


def rows(trace: Trace) -> list[dict[str, Any]]:
    return list(trace.table().to_pylist())


def by_text(trace: Trace) -> dict[str, list[dict[str, Any]]]:
    """The rows of each sample, under the text of its prompt."""
    samples: dict[int, list[dict[str, Any]]] = {}
    for row in rows(trace):
        samples.setdefault(row["sample"], []).append(row)
    return {"".join(r["token"] for r in group if r["part"] == "prompt"): group for group in samples.values()}


def test_choices_equal_a_recomputation_from_router_weights(vlm: Assistant) -> None:
    model = tiny_sparse(layers=[0, 2], num_experts=4, top_k=2).eval()
    engine = Engine(model, vlm.engine.processor)
    gates = [decoder_layers(model.model.language_model)[index].mlp.gate for index in (0, 2)]
    hidden: list[Tensor] = []
    handles = [gate.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0])) for gate in gates]
    inputs = tiny_inputs()
    with torch.no_grad(), Trace(engine) as trace:
        model(**inputs)
    for handle in handles:
        handle.remove()
    real = inputs["attention_mask"].flatten().bool()
    recorded = rows(trace)
    assert [row["token_id"] for row in recorded] == inputs["input_ids"].flatten()[real].tolist()
    assert [row["part"] == "answer" for row in recorded] == (inputs["labels"].flatten()[real] != -100).tolist()
    for layer, gate in enumerate(gates):
        logits = hidden[layer][real] @ gate.weight.T
        weights, experts = choose_experts(logits, 2, True)
        assert [row["experts"][layer] for row in recorded] == experts.tolist()
        torch.testing.assert_close(torch.tensor([row["weights"][layer] for row in recorded]), weights)
        ordered = logits.softmax(-1).sort(descending=True).values
        torch.testing.assert_close(torch.tensor([r["margin"][layer] for r in recorded]), ordered[:, 0] - ordered[:, 1])
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(torch.tensor([row["entropy"][layer] for row in recorded]), entropy)


def test_a_trace_does_not_depend_on_how_requests_were_batched(vlm: Assistant, prompts: list[tuple[str, Any]]) -> None:
    decoding = Decoding(max_new_tokens=5)
    with vlm.trace() as together:
        answers = vlm.batch(prompts, decoding=decoding)
    with vlm.trace() as alone:
        assert [vlm.chat(*prompt, decoding=decoding) for prompt in prompts] == answers
    with vlm.trace() as streamed:
        assert ["".join(vlm.stream(*prompt, decoding=decoding)).strip() for prompt in prompts] == answers
    left, right, third = by_text(together), by_text(alone), by_text(streamed)
    assert left.keys() == right.keys() == third.keys() and len(left) == 3
    for text, group in left.items():
        for other in (right[text], third[text]):
            for name in ("position", "token", "part", "image", "row", "column", "experts"):
                assert [row[name] for row in group] == [row[name] for row in other], name
    assert {row["part"] for group in left.values() for row in group} == {"prompt", "generated"}


def test_what_follows_the_end_of_an_answer_is_left_out(
    vlm: Assistant, prompts: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(trace: Trace) -> dict[str, list[int]]:
        groups = by_text(trace).items()
        return {text: [row["token_id"] for row in group if row["part"] == "generated"] for text, group in groups}

    decoding = Decoding(max_new_tokens=8)
    monkeypatch.setattr(vlm.engine.model.generation_config, "eos_token_id", None)
    with vlm.trace() as endless:
        vlm.batch(prompts, decoding=decoding)
    before = said(endless)
    assert [len(tokens) for tokens in before.values()] == [7, 7, 7]  # the last token is said and never read
    end = next(iter(before.values()))[3]
    monkeypatch.setattr(vlm.engine.model.generation_config, "eos_token_id", end)
    with vlm.trace() as ended:
        vlm.batch(prompts, decoding=decoding)
    assert said(ended) == {t: ids[: ids.index(end)] if end in ids else ids for t, ids in before.items()}


def test_patches_carry_their_image_and_place(vlm: Assistant, prompts: list[tuple[str, Any]]) -> None:
    with vlm.trace() as trace:
        vlm.chat(*prompts[2], decoding=Decoding(max_new_tokens=2))
    patches = [row for row in rows(trace) if row["modality"] == "image"]
    places = [(image, row, column) for image in range(2) for row in range(2) for column in range(2)]
    assert [(patch["image"], patch["row"], patch["column"]) for patch in patches] == places
    assert len(places) == 2 * IMAGE_TOKENS
    words = [row for row in rows(trace) if row["modality"] == "text"]
    assert {(row["image"], row["row"], row["column"]) for row in words} == {(None, None, None)}


def test_grids_of_towers() -> None:
    assert patch_grid(16) == (4, 4, 0)
    assert patch_grid(576, prefix_tokens=1) == (24, 24, 0)
    assert patch_grid(728, prefix_tokens=1) == (27, 27, 1)
    assert patch_grid(15) is None


def test_tracing_changes_nothing_and_leaves_nothing(vlm: Assistant, prompts: list[tuple[str, Any]]) -> None:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.engine.model.modules())

    before, hooks_before = vlm.batch(prompts, decoding=Decoding(max_new_tokens=5)), hooks()
    with vlm.trace() as trace:
        assert hooks() > hooks_before
        assert vlm.batch(prompts, decoding=Decoding(max_new_tokens=5)) == before
    path = trace.path
    assert path.is_file()
    vlm.batch(prompts[:1], decoding=Decoding(max_new_tokens=2))
    assert len(by_text(trace)) == 3
    assert hooks() == hooks_before
    del trace
    assert not path.exists()


def test_an_interrupted_trace_leaves_no_file(vlm: Assistant, prompts: list[tuple[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), vlm.trace(tmp_path / "routes.parquet"):
        vlm.batch(prompts, decoding=Decoding(max_new_tokens=2))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with vlm.trace(tmp_path / "routes.parquet") as trace:
        vlm.batch(prompts, decoding=Decoding(max_new_tokens=2))
    assert [path.name for path in tmp_path.iterdir()] == ["routes.parquet"]
    assert trace.info == RouteFile(trace.path).info


def test_what_cannot_be_traced_is_refused(vlm: Assistant, tiny: Tiny, tmp_path: Path) -> None:
    dense = Engine(*build_stage(load_recipe(tiny.recipe), "align"))
    with pytest.raises(ValueError, match="dense"):
        Trace(dense)
    with vlm.trace() as first, pytest.raises(ValueError, match="already"), vlm.trace():
        pass
    with pytest.raises(ValueError, match="no file of routes"):
        RouteFile(tiny.recipe)
    with vlm.trace() as trace, pytest.raises(ValueError, match="not finished"):
        trace.table()
    assert first.table().num_rows == 0


def test_rows_are_buffered_by_the_group_whatever_their_number(vlm: Assistant, tmp_path: Path) -> None:
    with vlm.trace() as trace:
        vlm.chat("Hello", decoding=Decoding(max_new_tokens=2))
    read = next(iter(RouteFile(trace.path).routes()))
    count = len(read.sample)
    choices = Choices(read.experts, read.weights, read.entropy, read.margin)

    def piece(number: int) -> TokenRows:
        one = np.full(count, number)
        return TokenRows(one, np.arange(count), one * 0, one, one * 0 - 1, one * 0 - 1, one * 0 - 1)

    writer = RouteWriter(tmp_path / "many.parquet", trace.info)
    writer.rows_per_group = 100
    for number in range(60):
        writer.write(piece(number), choices, ["a"] * count, ["b"] * count)
        assert writer.buffered < 100 + count
    writer.close()
    with RouteFile(tmp_path / "many.parquet") as file:
        assert file.rows == 60 * count
        assert file._file.metadata.num_row_groups > 5
        samples = np.concatenate([part.sample for part in file.routes(size=37)])
    assert samples.tolist() == np.repeat(np.arange(60), count).tolist()


def test_conversations_are_read_with_their_answers(vlm: Assistant, tiny: Tiny, tmp_path: Path) -> None:
    data = read_data(tiny.folder / "train.json")
    samples = trace_data(vlm.engine, data, tmp_path / "routes.parquet", batch_size=5)
    assert [sample.id for sample in samples] == [item.id for item in data]
    with RouteFile(tmp_path / "routes.parquet") as file:
        found = [row for table in file.tables(["id", "part", "token", "modality"]) for row in table.to_pylist()]
    answer = "".join(row["token"] for row in found if row["id"] == "1" and row["part"] == "answer")
    assert "It is green." in answer
    assert {row["id"] for row in found} == {sample.id for sample in samples}
    assert sum(row["modality"] == "image" for row in found) == 24 * IMAGE_TOKENS


def test_questions_are_answered(vlm: Assistant, tiny: Tiny, tmp_path: Path) -> None:
    data = read_data(tiny.folder / "questions.jsonl", limit=3)
    samples = trace_data(vlm.engine, data, tmp_path / "routes.parquet", max_new_tokens=4)
    assert len(samples) == 3
    assert json.loads(samples[0].line())["images"] == [str(tiny.folder / "images" / "red.png")]
    with RouteFile(tmp_path / "routes.parquet") as file:
        found = [row for table in file.tables(["id", "part"]) for row in table.to_pylist()]
    assert {row["id"] for row in found} == {"red", "green", "blue"}
    assert {row["part"] for row in found} == {"prompt", "generated"}
    with pytest.raises(ValueError, match="cannot be read"):
        read_data(tiny.folder / "nowhere.json")


def test_texts_of_tokens_join_to_the_text(vlm: Assistant) -> None:
    tokenizer = vlm.engine.processor.tokenizer
    text = "What colour is it? It is green."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(TokenTexts(tokenizer)(ids)) == text
