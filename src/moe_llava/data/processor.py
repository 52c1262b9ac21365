"""Messages and images -> what the model takes: one processor for training, chat and transformers' pipelines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, no_type_check

from PIL import Image
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import MultiModalData, ProcessorMixin

from moe_llava.data.conversation import IMAGE_TOKEN, Message
from moe_llava.data.images import load_image
from moe_llava.data.template import TEMPLATES, Segment, render, resolve_template
from moe_llava.data.tokenizer import prepare_tokenizer, train_tokenizer
from moe_llava.data.tokens import Tokens, expand, tokenize

__all__ = ["MoeLlavaProcessor", "load_image", "prepare_tokenizer", "train_tokenizer"]

Messages = Sequence[Message | Mapping[str, Any]]


class MoeLlavaProcessor(ProcessorMixin):
    """Tokenizer, image processor and chat template of one model.

    Calling it, `apply_chat_template`, decoding, saving and loading work as for transformers' `LlavaProcessor`.
    Training uses `encode`, which also says what is supervised.

    Args:
        image_processor: any transformers image processor; None for a text-only model.
        tokenizer: a fast tokenizer that knows `image_token` (see `prepare_tokenizer`).
        chat_template: Jinja, or a name in `TEMPLATES`.
        image_seq_length: the number of tokens that an image becomes.
        image_token: the marker in the text.
        model_max_length: the longest sequence that `encode` lets pass, image tokens included; None for any.

    Raises:
        ValueError: if the parts do not fit together.
    """

    image_seq_length: int
    image_token: str
    image_token_id: int
    model_max_length: int | None
    _prefix: tuple[int, ...]

    @no_type_check  # transformers reads the parameters from the code object, which a run-time checker would wrap
    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        image_seq_length: int = 0,
        image_token: str = IMAGE_TOKEN,
        model_max_length: int | None = None,
    ) -> None:
        if tokenizer is None:
            raise ValueError("a processor needs a tokenizer")
        if image_processor is not None and image_seq_length < 1:
            raise ValueError("image_seq_length must be the number of tokens of an image, for example 576")
        if chat_template in TEMPLATES:
            chat_template = resolve_template(chat_template, tokenizer)
        if chat_template is not None and image_token != IMAGE_TOKEN:
            chat_template = chat_template.replace(IMAGE_TOKEN, image_token)
        _check_tokenizer(tokenizer, image_token, chat_template)
        self.image_seq_length = image_seq_length
        self.image_token = image_token
        self.image_token_id = tokenizer.get_vocab()[image_token]
        self.model_max_length = model_max_length
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self._prefix = _prefix(tokenizer)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Text with one `image_token` an image, and the images -> `input_ids`, `attention_mask`, `pixel_values`.

        Images may be PIL images, paths, URLs, arrays or lists of them; files and PIL images are converted as in
        training (see `load_image`).
        """
        if images is not None and self.image_processor is None:
            raise ValueError("this model is text-only: it has no image processor; leave the images out")
        return super().__call__(images=_to_rgb(images), text=text, **kwargs)

    def encode(
        self, messages: Messages, num_images: int, *, add_generation_prompt: bool = False
    ) -> dict[str, list[int]]:
        """One conversation -> `input_ids` and `labels` (-100 where not supervised), images expanded.

        Args:
            messages: turns with one `<image>` an image.
            num_images: how many images come with them.
            add_generation_prompt: end with the opening of an answer; then nothing needs to be supervised.

        Raises:
            ValueError: if images and markers differ in number, nothing is supervised, or the sequence is longer
                than `model_max_length`. Nothing is ever cut off.
        """
        segments = self.render(messages, add_generation_prompt=add_generation_prompt)
        tokens = self.tokenize([segments])[0]
        self.check(tokens, num_images, needs_answer=not add_generation_prompt)
        input_ids, labels = expand(tokens.input_ids, tokens.supervised, self.image_token_id, self.image_seq_length)
        return {"input_ids": input_ids.tolist(), "labels": labels.tolist()}

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> list[Segment]:
        """The text of a conversation in supervised and unsupervised segments, images not expanded."""
        if not isinstance(self.chat_template, str):
            raise ValueError(f"the processor has no chat template; give it one of {', '.join(TEMPLATES)}")
        if self.image_token != IMAGE_TOKEN:
            messages = [_with_marker(message, self.image_token) for message in messages]
        return render(
            messages,
            self.chat_template,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.tokenizer.special_tokens_map,
        )

    def tokenize(self, batch: Sequence[Sequence[Segment]]) -> list[Tokens]:
        """Tokens of rendered conversations, images not expanded; BOS in front if the tokenizer puts one."""
        return tokenize(batch, self.tokenizer, self._prefix)

    def length(self, tokens: Tokens) -> int:
        """The length of a tokenized conversation with its images expanded."""
        markers = int((tokens.input_ids == self.image_token_id).sum())
        return len(tokens.input_ids) + markers * (self.image_seq_length - 1)

    def check(self, tokens: Tokens, num_images: int, *, needs_answer: bool = True) -> None:
        """Raise the ValueErrors of `encode`."""
        is_image = tokens.input_ids == self.image_token_id
        markers = int(is_image.sum())
        if markers != num_images:
            raise ValueError(
                f"the text holds {markers} {self.image_token} but {num_images} images are given; "
                f"write one {self.image_token} where each image stands"
            )
        if markers and self.image_processor is None:
            raise ValueError("this model is text-only: it has no image processor; remove the images")
        if needs_answer and not (tokens.supervised & ~is_image).any():
            raise ValueError("no token is supervised; the conversation needs an answer that the template marks")
        length = self.length(tokens)
        if self.model_max_length is not None and length > self.model_max_length:
            text_length = len(tokens.input_ids) - markers
            raise ValueError(
                f"{length} tokens ({text_length} of text, {markers} x {self.image_seq_length} of images) exceed "
                f"model_max_length {self.model_max_length}; shorten or split the conversation, or raise the limit"
            )

    @property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's end mark and the one the template puts after an answer."""
        stops = {self.tokenizer.eos_token_id} - {None}
        if isinstance(self.chat_template, str):
            answer = "."
            probe = [Message("user", self.image_token), Message("assistant", answer)]
            written = "".join(segment.text for segment in self.render(probe) if segment.supervised)
            mark = written.rpartition(answer)[2]
            ids = self.tokenizer(mark, add_special_tokens=False)["input_ids"] if mark else []
            special = set(self.tokenizer.all_special_ids)
            # A mark of several plain tokens cannot be told by one of them; a single character (a newline) can.
            stops |= {token for token in ids if token in special} or (set(ids[-1:]) if len(mark) == 1 else set())
        return sorted(stops)

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The text that stands for one image, as transformers' processors define it."""
        return self.image_token * self.image_seq_length

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        # vLLM asks for this before it sees an image.
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.image_seq_length] * count, num_image_patches=[1] * count)

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Let None pass for the image processor of a text-only model."""
        if argument_name == "image_processor" and argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write everything that `from_pretrained` needs into a folder."""
        if self.image_processor is not None:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        if isinstance(self.chat_template, str):
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        self.to_json_file(folder / "processor_config.json")
        return [str(folder / "processor_config.json")]

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        # The one place where transformers decides which parts to load.
        if processor_dict is not None and "image_processor" in processor_dict and not processor_dict["image_processor"]:
            return [None, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)]
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, image_token: str, chat_template: str | None) -> None:
    if not tokenizer.is_fast:
        raise ValueError("a fast tokenizer is needed, for its character offsets; load it with AutoTokenizer")
    if image_token not in tokenizer.all_special_tokens:
        raise ValueError(
            f"{image_token} is no special token of this tokenizer; call prepare_tokenizer(tokenizer) first"
        )
    if chat_template is not None and "eos_token" in chat_template and tokenizer.eos_token is None:
        raise ValueError("the chat template ends answers with eos_token, which this tokenizer lacks; set it")


def _prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts in front of a text by itself (BOS, or nothing)."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    if full[len(full) - len(bare) :] != bare:
        raise ValueError("the tokenizer appends a token to every text; load it with add_eos_token=False")
    return tuple(full[: len(full) - len(bare)])


def _with_marker(message: Message | Mapping[str, Any], image_token: str) -> Message | Mapping[str, Any]:
    """The message with `image_token` for `<image>`; lists of parts get it from the template."""
    if isinstance(message, Message):
        return Message(message.role, message.content.replace(IMAGE_TOKEN, image_token))
    if isinstance(message["content"], str):
        return {**message, "content": message["content"].replace(IMAGE_TOKEN, image_token)}
    return message


def _to_rgb(images: Any) -> Any:
    """Files and PIL images become RGB as in training; URLs, arrays and tensors are left to transformers."""
    if isinstance(images, list | tuple):
        return [_to_rgb(image) for image in images]
    if isinstance(images, Image.Image | Path) or (isinstance(images, str) and _is_file(images)):
        return load_image(images)
    return images


def _is_file(name: str) -> bool:
    # A name may also be a URL or base64, too long for the file system to ask about.
    return len(name) < 4096 and Path(name).is_file()
