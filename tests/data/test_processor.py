"""One processor for training and use: the same tokens by every way, and errors that name the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from moe_llava.data import TEMPLATES, Message, MoeLlavaProcessor, Segment, train_tokenizer

CHAT = [Message("user", "<image>\nWhat is this?"), Message("assistant", "A cat.")]
RED = Image.new("RGB", (40, 30), "red")


def supervised_text(processor: MoeLlavaProcessor, labels: list[int]) -> str:
    return processor.decode([label for label in labels if label != -100])


def test_encode_supervises_the_answer_and_expands_images(processor: MoeLlavaProcessor) -> None:
    encoded = processor.encode(CHAT, 1)
    assert supervised_text(processor, encoded["labels"]) == " A cat.</s>"
    assert encoded["input_ids"].count(processor.image_token_id) == 4
    assert len(encoded["input_ids"]) == len(encoded["labels"])
    pairs = zip(encoded["input_ids"], encoded["labels"], strict=True)
    assert all(label in (-100, token) for token, label in pairs)


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"chatml"}))
def test_an_encoded_prompt_is_what_the_chat_template_gives(
    tokenizer: PreTrainedTokenizerFast, image_processor: CLIPImageProcessor, name: str
) -> None:
    processor = MoeLlavaProcessor(image_processor, tokenizer, chat_template=name, image_seq_length=4)
    parts = [{"type": "image", "image": RED}, {"type": "text", "text": "What is this?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    prompt = processor.encode(CHAT[:1], 1, add_generation_prompt=True)
    assert inputs["input_ids"].tolist() == [prompt["input_ids"]]
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)
    training = processor.encode(CHAT, 1)["input_ids"]
    assert training[: len(prompt["input_ids"])] == prompt["input_ids"]


def test_transformers_own_mask_agrees_with_our_labels(processor: MoeLlavaProcessor) -> None:
    chat = [{"role": message.role, "content": message.content} for message in CHAT]
    inputs = processor.apply_chat_template(
        [chat],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"images": [[RED]]},
    )
    labels = processor.encode(CHAT, 1)["labels"]
    assert inputs["assistant_masks"] == [[int(label != -100) for label in labels]]


def test_call_takes_files_and_batches(processor: MoeLlavaProcessor, picture: Callable[..., Path]) -> None:
    clear = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
    batch = processor(
        images=[[picture("white")], [clear]], text=["<image> a", "<image> b c"], padding=True, return_tensors="pt"
    )
    assert batch["pixel_values"].shape == (2, 3, 28, 28)
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    texts = processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert [text.strip() for text in texts] == ["a", "b c"]


def test_saved_and_loaded_it_is_the_same(processor: MoeLlavaProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = MoeLlavaProcessor.from_pretrained(tmp_path)
    assert loaded.encode(CHAT, 1) == processor.encode(CHAT, 1)
    assert loaded.to_dict() == processor.to_dict()
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), MoeLlavaProcessor)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == processor.chat_template


def test_text_only_processor(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    chat = [Message("user", "Hi"), Message("assistant", "Hello.")]
    processor = MoeLlavaProcessor(tokenizer=tokenizer, chat_template="vicuna", model_max_length=300)
    processor.save_pretrained(tmp_path)
    loaded = MoeLlavaProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor is None
    assert loaded.model_max_length == 300
    assert loaded.encode(chat, 0) == processor.encode(chat, 0)
    assert loaded(text="Hi")["input_ids"] == [tokenizer("Hi")["input_ids"]]
    with pytest.raises(ValueError, match="text-only"):
        loaded(text="<image>", images=RED)
    with pytest.raises(ValueError, match="text-only"):
        loaded.encode(CHAT, 1)


def test_wrong_conversations_name_the_remedy(processor: MoeLlavaProcessor) -> None:
    with pytest.raises(ValueError, match="holds 1 <image> but 2 images"):
        processor.encode(CHAT, 2)
    with pytest.raises(ValueError, match="no token is supervised"):
        processor.encode(CHAT[:1], 1)


def test_nothing_is_cut_off(tokenizer: PreTrainedTokenizerFast, image_processor: CLIPImageProcessor) -> None:
    length = len(MoeLlavaProcessor(image_processor, tokenizer, "vicuna", 4).encode(CHAT, 1)["input_ids"])
    assert len(MoeLlavaProcessor(image_processor, tokenizer, "vicuna", 4, "<image>", length).encode(CHAT, 1)["labels"])
    short = MoeLlavaProcessor(image_processor, tokenizer, "vicuna", 4, "<image>", length - 1)
    with pytest.raises(ValueError, match=rf"{length} tokens \({length - 4} of text, 1 x 4 of images\) exceed"):
        short.encode(CHAT, 1)


def test_parts_that_do_not_fit(tokenizer: PreTrainedTokenizerFast, image_processor: CLIPImageProcessor) -> None:
    backend = tokenizer.backend_tokenizer
    with pytest.raises(ValueError, match="prepare_tokenizer"):
        MoeLlavaProcessor(None, PreTrainedTokenizerFast(tokenizer_object=backend))
    with pytest.raises(ValueError, match="image_seq_length"):
        MoeLlavaProcessor(image_processor, tokenizer)
    with pytest.raises(ValueError, match="eos_token"):
        endless = PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=["<image>"])
        MoeLlavaProcessor(None, endless, chat_template="vicuna")
    with pytest.raises(ValueError, match="add_eos_token"):
        MoeLlavaProcessor(None, with_template(tokenizer, "$A </s>"))
    with pytest.raises(ValueError, match="no chat template"):
        MoeLlavaProcessor(None, tokenizer).encode(CHAT, 1)


def test_bos_comes_once(tokenizer: PreTrainedTokenizerFast) -> None:
    begins = MoeLlavaProcessor(None, with_template(tokenizer, "</s> $A"), chat_template="vicuna")
    chat = [Message("user", "Hi"), Message("assistant", "Hello.")]
    encoded = begins.encode(chat, 0)
    bare = MoeLlavaProcessor(None, tokenizer, chat_template="vicuna").encode(chat, 0)
    assert encoded["input_ids"] == [1, *bare["input_ids"]]
    assert encoded["labels"] == [-100, *bare["labels"]]
    assert begins(text="Hi")["input_ids"][0] == [1, *tokenizer("Hi")["input_ids"]]


def with_template(tokenizer: PreTrainedTokenizerFast, pattern: str) -> PreTrainedTokenizerFast:
    """The tokenizer with special tokens around every text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single=pattern, special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", extra_special_tokens=["<image>"])


def test_another_image_token(tokenizer: PreTrainedTokenizerFast, image_processor: CLIPImageProcessor) -> None:
    other = train_tokenizer(["a"], 300)
    other.add_special_tokens({"extra_special_tokens": ["<|picture|>"]}, replace_extra_special_tokens=False)
    processor = MoeLlavaProcessor(image_processor, other, "vicuna", 4, "<|picture|>")
    encoded = processor.encode(CHAT, 1)
    assert encoded["input_ids"].count(processor.image_token_id) == 4
    chat = [{"role": "user", "content": [{"type": "image"}]}]
    assert "<|picture|>" in processor.apply_chat_template(chat)


def test_stop_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    def stops(template: str) -> list[str]:
        processor = MoeLlavaProcessor(None, tokenizer, chat_template=template)
        return tokenizer.convert_ids_to_tokens(processor.stop_token_ids)

    assert stops("vicuna") == ["</s>"]
    assert stops("plain") == ["</s>", "Ċ"]
    assert stops("{% generation %}{{ messages[1].content }}###{% endgeneration %}") == ["</s>"]
    assert stops("{% generation %}{{ messages[1].content }}<pad>{% endgeneration %}") == ["<pad>", "</s>"]


def test_vllm_learns_how_many_tokens_an_image_takes(processor: MoeLlavaProcessor) -> None:
    sizes = processor._get_num_multimodal_tokens(image_sizes=[(10, 20), (5, 5)])
    assert sizes["num_image_tokens"] == [4, 4]
    assert sizes["num_image_patches"] == [1, 1]


TEMPLATE_OF = {
    "v1": ("vicuna", "</s>"),
    "mistral": ("vicuna", "</s>"),
    "minicpm": ("vicuna", "</s>"),
    "openchat": ("vicuna", "<|end_of_turn|>"),
    "phi": ("phi", "<|endoftext|>"),
    "qwen": ("qwen", "<|endoftext|>"),
    "stablelm": ("stablelm", "<|endoftext|>"),
    "plain": ("plain", "</s>"),
}


def test_ids_and_labels_are_the_original_s(
    golden: Callable[[str], Any], golden_tokenizer: Callable[[str, str], PreTrainedTokenizerBase]
) -> None:
    compared = 0
    for row in golden("preprocess.json"):
        if row["warning"] or row["version"] not in TEMPLATE_OF:
            continue
        template, eos_token = TEMPLATE_OF[row["version"]]
        processor = MoeLlavaProcessor(None, golden_tokenizer(row["tokenizer"], eos_token), chat_template=template)
        assert _encoded_as_the_original(processor, row) == (row["input_ids"], row["labels"]), row["case"]
        compared += 1
    assert compared == 86


def test_images_in_text_are_tokenized_as_the_original_does(
    golden: Callable[[str], Any], golden_tokenizer: Callable[[str, str], PreTrainedTokenizerBase]
) -> None:
    for row in golden("tokenizer_image_token.json"):
        processor = MoeLlavaProcessor(None, golden_tokenizer(row["tokenizer"], "</s>"))
        ids = processor.tokenize([[Segment(row["text"], False)]])[0].input_ids.tolist()
        assert [-200 if token == processor.image_token_id else token for token in ids] == row["ids"]


def _encoded_as_the_original(processor: MoeLlavaProcessor, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Images as -200; a leading answer dropped and text-only samples truncated, as the original does silently."""
    roles = {"human": "user", "gpt": "assistant"}
    chat = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversation"]]
    chat = chat[1:] if chat[0]["role"] == "assistant" else chat
    tokens = processor.tokenize([processor.render(chat)])[0]
    ids = [-200 if token == processor.image_token_id else token for token in tokens.input_ids.tolist()]
    labels = [token if chosen else -100 for token, chosen in zip(ids, tokens.supervised, strict=True)]
    end = None if row["has_image"] else row["model_max_length"]
    return ids[:end], labels[:end]
