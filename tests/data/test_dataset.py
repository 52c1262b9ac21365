"""Conversations become samples; errors come before training, not during it."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from moe_llava.data import (
    Collator,
    Conversation,
    ConversationDataset,
    DataError,
    FeatureStore,
    MoeLlavaProcessor,
    mixture,
)

Picture = Callable[..., Path]
Ask = Callable[..., Conversation]


def store_of(paths: list[Path], image_processor: CLIPImageProcessor, folder: Path, tokens: int = 4) -> FeatureStore:
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))[:, None].repeat(1, tokens, 1)

    return FeatureStore.build(paths, encode, image_processor, key="k", folder=folder, progress=False)


def test_samples_are_what_the_processor_encodes(processor: MoeLlavaProcessor, ask: Ask, picture: Picture) -> None:
    red, blue = picture("red"), picture("blue")
    conversations = [
        ask("<image>\nWhat?", "Red.", red),
        ask("Hello", "Hi."),
        ask("<image><image>", "Two.", red, blue),
    ]
    dataset = ConversationDataset(conversations, processor)
    assert len(dataset) == 3
    assert dataset.has_image == [True, False, True]
    for index, conversation in enumerate(conversations):
        encoded = processor.encode(conversation.messages, len(conversation.images))
        sample = dataset[index]
        assert sample["input_ids"].tolist() == encoded["input_ids"]
        assert sample["labels"].tolist() == encoded["labels"]
        assert dataset.lengths[index] == len(encoded["input_ids"])
    assert "pixel_values" not in dataset[1]
    assert dataset[2]["pixel_values"].shape == (2, 3, 28, 28)
    assert torch.equal(dataset[2]["pixel_values"][:1], dataset[0]["pixel_values"])


def test_features_stand_in_for_pixels(
    processor: MoeLlavaProcessor, ask: Ask, picture: Picture, tmp_path: Path, image_processor: CLIPImageProcessor
) -> None:
    red, blue = picture("red"), picture("blue")
    store = store_of([red, blue], image_processor, tmp_path)
    dataset = ConversationDataset([ask("<image><image>", "Two.", blue, red), ask("Hello", "Hi.")], processor, store)
    assert torch.equal(dataset[0]["image_features"], torch.stack([store[blue], store[red]]))
    assert "image_features" not in dataset[1]
    assert "pixel_values" not in dataset[0]
    with pytest.raises(DataError, match=r"lime.png is not in the feature store"):
        ConversationDataset([ask("<image>", "Green.", picture("lime"))], processor, store)


def test_a_store_of_another_size_is_refused(
    processor: MoeLlavaProcessor, picture: Picture, tmp_path: Path, image_processor: CLIPImageProcessor
) -> None:
    store = store_of([picture("red")], image_processor, tmp_path, tokens=5)
    with pytest.raises(ValueError, match="5 tokens an image, the processor 4"):
        ConversationDataset([], processor, store)


@pytest.fixture
def faulty(ask: Ask) -> list[Conversation]:
    return [
        ask("Hello", "Hi.", source="a.json:1"),
        ask("<image>", "No image.", source="a.json:2"),
        ask("long " * 200, "Too long.", source="a.json:3"),
        ask("Hello again", "Hi.", source="a.json:4"),
    ]


@pytest.fixture
def strict(tokenizer: PreTrainedTokenizerFast, image_processor: CLIPImageProcessor) -> MoeLlavaProcessor:
    return MoeLlavaProcessor(image_processor, tokenizer, "vicuna", 4, model_max_length=400)


def test_all_problems_are_raised_at_once(faulty: list[Conversation], strict: MoeLlavaProcessor) -> None:
    with pytest.raises(DataError) as error:
        ConversationDataset(faulty, strict)
    assert [problem.source for problem in error.value.problems] == ["a.json:2", "a.json:3"]
    assert "exceed model_max_length 400" in str(error.value)


def test_skipped_samples_are_listed(faulty: list[Conversation], strict: MoeLlavaProcessor) -> None:
    dataset = ConversationDataset(faulty, strict, on_error="skip")
    assert [problem.source for problem in dataset.skipped] == ["a.json:2", "a.json:3"]
    assert [conversation.source for conversation in dataset.conversations] == ["a.json:1", "a.json:4"]
    assert "Hello again" in strict.decode(dataset[1]["input_ids"])


def test_a_template_s_refusal_is_a_problem_of_that_sample(
    ask: Ask, tokenizer: PreTrainedTokenizerFast, image_processor: CLIPImageProcessor, picture: Picture
) -> None:
    plain = MoeLlavaProcessor(image_processor, tokenizer, "plain", 4)
    conversations = [ask("no image", "A.", source="a:1"), ask("<image>", "A cat.", picture("red"), source="a:2")]
    dataset = ConversationDataset(conversations, plain, on_error="skip")
    assert [problem.source for problem in dataset.skipped] == ["a:1"]
    assert len(dataset) == 1


def test_workers_get_the_same_samples(processor: MoeLlavaProcessor, ask: Ask, picture: Picture) -> None:
    dataset = ConversationDataset([ask("<image>", "Red.", picture("red"))], processor)
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(copy[0][name], tensor) for name, tensor in dataset[0].items())


def test_dataset_to_batch(processor: MoeLlavaProcessor, ask: Ask, picture: Picture) -> None:
    dataset = ConversationDataset([ask("<image>", "Red.", picture("red")), ask("Hello", "Hi.")], processor)
    batch = Collator(processor.tokenizer.pad_token_id)([dataset[0], dataset[1]])
    assert (batch["input_ids"] == processor.image_token_id).sum() == 4 * len(batch["pixel_values"])


@pytest.fixture
def numbered(processor: MoeLlavaProcessor, ask: Ask) -> Callable[..., ConversationDataset]:
    """`numbered(3, "a")` -> a dataset whose answers are a0, a1, a2."""

    def make(count: int, name: str) -> ConversationDataset:
        return ConversationDataset([ask("Hello" * index, f"{name}{index}") for index in range(count)], processor)

    return make


def answers(dataset: torch.utils.data.Dataset, processor: MoeLlavaProcessor) -> list[str]:
    labels = [dataset[index]["labels"] for index in range(len(dataset))]  # type: ignore[arg-type]
    return [processor.decode(row[row != -100], skip_special_tokens=True).strip() for row in labels]


def test_mixture_of_equal_parts_is_their_concatenation(
    numbered: Callable[..., ConversationDataset], processor: MoeLlavaProcessor
) -> None:
    first, second = numbered(2, "a"), numbered(3, "b")
    mixed = mixture([(first, 1.0), (second, 1.0)], seed=0)
    assert answers(mixed, processor) == ["a0", "a1", "b0", "b1", "b2"]
    assert mixed.lengths == first.lengths + second.lengths
    assert mixed.has_image == [False] * 5


def test_mixture_weights_are_rates(numbered: Callable[..., ConversationDataset], processor: MoeLlavaProcessor) -> None:
    part = numbered(10, "a")
    half = answers(mixture([(part, 0.5)], seed=0), processor)
    assert len(half) == len(set(half)) == 5
    assert half == answers(mixture([(part, 0.5)], seed=0), processor)
    assert half != answers(mixture([(part, 0.5)], seed=1), processor)
    more = answers(mixture([(part, 2.5)], seed=0), processor)
    assert sorted(more.count(f"a{index}") for index in range(10)) == [2] * 5 + [3] * 5
    assert len(mixture([], seed=0)) == 0
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive number"):
            mixture([(part, weight)], seed=0)
