"""Sparse vision-language models by MoE-Tuning: build, train, measure and explain them on any machine.

Importing this package registers its model and processor with transformers' Auto classes and pipelines.
"""

from moe_llava.assistant import Assistant, load
from moe_llava.data import MoeLlavaProcessor
from moe_llava.generate.engine import Decoding
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration, MoeLlavaModel
from moe_llava.model.compose import compose
from moe_llava.model.upcycle import upcycle

__version__ = "0.1.0"

__all__ = [
    "Assistant",
    "Decoding",
    "MoeLlavaConfig",
    "MoeLlavaForConditionalGeneration",
    "MoeLlavaModel",
    "MoeLlavaProcessor",
    "compose",
    "load",
    "upcycle",
]
