"""What vLLM finds of this package; answers through it are compared by hand (docs/scaling.md)."""

import tomllib
from pathlib import Path

import pytest
import transformers

from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.serve.vllm import register


def test_the_plugin_puts_the_class_where_vllm_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    assert declared["vllm.general_plugins"] == {"moe_llava": f"{register.__module__}:{register.__name__}"}
    monkeypatch.setattr(transformers, MoeLlavaForConditionalGeneration.__name__, None, raising=False)
    register()
    assert transformers.MoeLlavaForConditionalGeneration is MoeLlavaForConditionalGeneration
