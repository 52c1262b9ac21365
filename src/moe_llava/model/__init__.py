"""Image and text in, logits and router logits out. Imports nothing from the rooms above."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from moe_llava.model.config import MoeLlavaConfig
from moe_llava.model.moe_llava import MoeLlavaForConditionalGeneration, MoeLlavaModel

AutoConfig.register(MoeLlavaConfig.model_type, MoeLlavaConfig)
AutoModel.register(MoeLlavaConfig, MoeLlavaModel)
AutoModelForImageTextToText.register(MoeLlavaConfig, MoeLlavaForConditionalGeneration)
AutoModelForMultimodalLM.register(MoeLlavaConfig, MoeLlavaForConditionalGeneration)

__all__ = ["MoeLlavaConfig", "MoeLlavaForConditionalGeneration", "MoeLlavaModel"]
