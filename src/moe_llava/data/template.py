"""Chat templates -> (text, supervised?) segments. The only place that knows how roles are written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from moe_llava.data.conversation import Message

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_CHATML_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)

# Lists of parts become text, so that a template below it (also a text model's own) sees only strings.
_FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- if message.content is string or not message.content -%}
        {%- set flat.messages = flat.messages + [message] -%}
    {%- else -%}
        {%- set joined = namespace(text='') -%}
        {%- for part in message.content -%}
            {%- if part.type == 'text' -%}
                {%- set joined.text = joined.text ~ part.text -%}
            {%- elif part.type in ['image', 'image_url'] -%}
                {%- set joined.text = joined.text ~ '<image>' ~ ('' if loop.last else '\\n') -%}
            {%- else -%}
                {{- raise_exception('cannot render a content part of type ' ~ part.type) -}}
            {%- endif -%}
        {%- endfor -%}
        {%- set flat.messages = flat.messages + [dict(message, content=joined.text)] -%}
    {%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""

_SPLIT_SYSTEM = """\
{%- if messages and messages[0].role == 'system' -%}
    {%- set system = messages[0].content -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system = SYSTEM -%}
{%- endif -%}
"""

_USER_ASSISTANT = """\
{{- system ~ ' ' if system else '' -}}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- 'USER: ' ~ message.content ~ ' ' -}}
    {%- elif message.role == 'assistant' -%}
        {{- 'ASSISTANT:' -}}
        {%- generation -%}
        {{- ' ' ~ message.content ~ (eos_token or END) -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- raise_exception('a ' ~ message.role ~ ' turn cannot stand here; only the first may be the system turn') -}}
    {%- endif -%}
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt else '' -}}
"""

_CHATML = """\
{{- '<|im_start|>system\\n' ~ system ~ '<|im_end|>\\n' if system else '' -}}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- '<|im_start|>user\\n' ~ message.content ~ '<|im_end|>\\n' -}}
    {%- elif message.role == 'assistant' -%}
        {{- '<|im_start|>assistant\\n' -}}
        {%- generation -%}
        {{- message.content ~ '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- else -%}
        {{- raise_exception('a ' ~ message.role ~ ' turn cannot stand here; only the first may be the system turn') -}}
    {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""

# Stage I: images, then the caption. The question is discarded, as in the original.
_PLAIN = """\
{%- if messages | length > 2 -%}
    {{- raise_exception('plain takes one question and one answer; use another template for dialogues') -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {%- if '<image>' not in message.content -%}
            {{- raise_exception('plain describes images but the question holds no <image>') -}}
        {%- endif -%}
        {{- '<image>' * (message.content.split('<image>') | length - 1) -}}
    {%- elif message.role == 'assistant' -%}
        {%- generation -%}
        {{- message.content ~ '\\n' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- raise_exception('plain has no ' ~ message.role ~ ' turn; use another template') -}}
    {%- endif -%}
{%- endfor -%}
"""


def _user_assistant(end: str) -> str:
    """LLaVA's wording. The end mark is the tokenizer's own; `end` stands where there is no tokenizer."""
    body = _SPLIT_SYSTEM.replace("SYSTEM", f'"{_VICUNA_SYSTEM}"') + _USER_ASSISTANT.replace("END", f"'{end}'")
    return _FLATTEN + body


TEMPLATES: dict[str, str] = {
    "plain": _FLATTEN + _PLAIN,
    "vicuna": _user_assistant("</s>"),
    "phi": _user_assistant("<|endoftext|>"),
    "qwen": _user_assistant("<|endoftext|>"),
    "stablelm": _user_assistant("<|endoftext|>"),
    "chatml": _FLATTEN + _SPLIT_SYSTEM.replace("SYSTEM", f'"{_CHATML_SYSTEM}"') + _CHATML,
}


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text that the model either learns to write or only reads."""

    text: str
    supervised: bool


def render(
    messages: Sequence[Message | Mapping[str, Any]],
    chat_template: str,
    *,
    add_generation_prompt: bool = False,
    special_tokens: Mapping[str, str],
) -> list[Segment]:
    """Render a conversation into segments whose texts, joined, are the prompt.

    What stands in `{% generation %}` is supervised. A template without it is rendered with and without each answer,
    and the difference is supervised.

    Args:
        messages: turns; content may be text or a list of text and image parts.
        chat_template: the Jinja text, see `resolve_template`.
        add_generation_prompt: end with the opening of an answer.
        special_tokens: names that the template may use, such as `eos_token` (a tokenizer's `special_tokens_map`).

    Raises:
        ValueError: if the template refuses the conversation, or rewrites earlier turns so that the
            supervised text cannot be told.
    """
    chat = [_as_dict(message) for message in messages]
    if _GENERATION.search(chat_template):
        text, spans = _run(chat, chat_template, add_generation_prompt, special_tokens, tracked=True)
    else:
        text, spans = _by_difference(chat, chat_template, add_generation_prompt, special_tokens)
    return _cut(text, spans)


def resolve_template(template: str | None, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The Jinja text for a name in `TEMPLATES`, "tokenizer" or None (its own), a `.jinja` path or Jinja itself.

    What comes from outside gets a preamble that turns lists of content parts into text with `<image>`.

    Raises:
        ValueError: for an unknown name, a missing file, or a tokenizer without what the template needs.
    """
    if template is None or template == "tokenizer":
        return _own_template(tokenizer)
    if "{%" in template or "{{" in template:
        return _flattened(template)
    if template.endswith(".jinja"):
        if not Path(template).is_file():
            raise ValueError(f"no template file {template}; correct the path")
        return _flattened(Path(template).read_text(encoding="utf-8"))
    if template not in TEMPLATES:
        choices = ", ".join([*TEMPLATES, "tokenizer"])
        raise ValueError(f"unknown template {template!r}; choose one of {choices}, or give a .jinja file")
    if template == "chatml" and tokenizer is not None and "<|im_end|>" not in tokenizer.get_vocab():
        raise ValueError("template 'chatml' needs the token <|im_end|>, which this tokenizer lacks; choose 'vicuna'")
    return TEMPLATES[template]


def _own_template(tokenizer: PreTrainedTokenizerBase | None) -> str:
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = own.get("default")
    if not own:
        raise ValueError(f"the tokenizer has no chat template of its own; choose one of {', '.join(TEMPLATES)}")
    return _flattened(own)


def _flattened(template: str) -> str:
    return template if template.startswith(_FLATTEN) else _FLATTEN + template


def _as_dict(message: Message | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(message, Message):
        return {"role": message.role, "content": message.content}
    return dict(message)


Span = tuple[int, int]


def _run(
    chat: list[dict[str, Any]],
    chat_template: str,
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
    tracked: bool = False,
) -> tuple[str, list[Span]]:
    """The rendered text and, if tracked, the character spans of `{% generation %}`."""
    names: dict[str, Any] = dict(special_tokens)
    try:
        rendered: Any = render_jinja_template(
            conversations=[chat],
            chat_template=chat_template,
            return_assistant_tokens_mask=tracked,
            add_generation_prompt=add_generation_prompt,
            **names,
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses this conversation: {error}") from error
    texts, spans = rendered
    return texts[0], spans[0] if tracked else []


def _by_difference(
    chat: list[dict[str, Any]], chat_template: str, add_generation_prompt: bool, special_tokens: Mapping[str, str]
) -> tuple[str, list[Span]]:
    text, _ = _run(chat, chat_template, add_generation_prompt, special_tokens)
    spans = []
    for index, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before, _ = _run(chat[:index], chat_template, True, special_tokens)
        after, _ = _run(chat[: index + 1], chat_template, False, special_tokens)
        if not after.startswith(before) or not text.startswith(after):
            raise ValueError(
                f"the chat template changes earlier text when turn {index} is added, so its supervised part is "
                "unknown; put {% generation %} ... {% endgeneration %} around the answer in the template"
            )
        spans.append((len(before), len(after)))
    return text, spans


def _cut(text: str, spans: list[Span]) -> list[Segment]:
    segments = []
    position = 0
    for start, end in spans:
        segments += [Segment(text[position:start], False), Segment(text[start:end], True)]
        position = end
    segments.append(Segment(text[position:], False))
    return [segment for segment in segments if segment.text]
