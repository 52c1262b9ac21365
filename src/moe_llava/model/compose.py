"""Parts -> one vision-language model: a causal language model, a vision tower, a fresh projector."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_llava.model.config import MoeLlavaConfig
from moe_llava.model.moe_llava import MoeLlavaForConditionalGeneration
from moe_llava.model.projector import build_projector
from moe_llava.model.vision import tower_shape


def compose(
    language_model: PreTrainedModel,
    vision_tower: PreTrainedModel | None = None,
    *,
    image_token_id: int,
    image_size: tuple[int, int] = (0, 0),
    feature_layer: int | list[int] | None = None,
    prefix_tokens: int | None = None,
    projector_type: str = "mlp2x_gelu",
) -> MoeLlavaForConditionalGeneration:
    """A dense model that owns copies of the parts' weights; the projector is new.

    Args:
        language_model: any causal language model of transformers whose layers hold `mlp`.
        vision_tower: any vision model, or `None` for a text-only model.
        image_size: height and width of the pixels that the image processor gives.
        feature_layer: which of the tower's hidden states to read, one or several side by side; `None` is its output.
        prefix_tokens: leading tokens to drop; by default those that are not patches.
    """
    text_config = language_model.config.get_text_config()
    config = MoeLlavaConfig(
        text_config=text_config.to_dict(), image_token_id=image_token_id, projector_type=projector_type
    )
    state = language_state(language_model)
    if vision_tower is not None:
        shape = tower_shape(vision_tower.config, *image_size, feature_layer)
        dropped = shape.prefix_tokens if prefix_tokens is None else prefix_tokens
        config.vision_config = type(vision_tower.config)(**vision_tower.config.to_dict())
        config.vision_feature_layer = feature_layer
        config.vision_prefix_tokens = dropped
        config.vision_hidden_size = shape.width
        config.image_seq_length = shape.tokens + shape.prefix_tokens - dropped
        projector = build_projector(projector_type, shape.width, text_config.hidden_size)
        state |= {f"model.vision_tower.{name}": tensor for name, tensor in vision_tower.state_dict().items()}
        state |= {f"model.multi_modal_projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    return load_state(config, state, dtype=language_model.dtype)


def language_state(language_model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights of a causal language model under the names they have in a MoE-LLaVA."""
    decoder = getattr(language_model, language_model.base_model_prefix)
    head = language_model.get_output_embeddings()
    return {
        **{f"model.language_model.{name}": tensor for name, tensor in decoder.state_dict().items()},
        **{f"lm_head.{name}": tensor for name, tensor in head.state_dict().items()},
    }


def load_state(
    config: MoeLlavaConfig, state: dict[str, Tensor], *, dtype: torch.dtype
) -> MoeLlavaForConditionalGeneration:
    """Build a model whose every tensor is in `state`.

    Raises:
        ValueError: tensors are missing or left over; the names are listed.
    """
    loaded: Any = MoeLlavaForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    model, info = loaded
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing or unexpected:
        raise ValueError(f"The parts do not fit together: missing {missing}, unexpected {unexpected}.")
    return model.eval()
