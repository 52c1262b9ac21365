"""Image and text in, logits and router logits out: the composition and its loss."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MultimodalMoeBaseModelOutputWithPast,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from moe_llava.model.balance import load_balancing_loss, router_z_loss, stack_real_tokens
from moe_llava.model.config import MoeLlavaConfig
from moe_llava.model.decoder import build_decoder
from moe_llava.model.head import LogitRule
from moe_llava.model.output import MoeLlavaOutput
from moe_llava.model.projector import build_projector
from moe_llava.model.vision import patch_features


class MoeLlavaPreTrainedModel(PreTrainedModel):
    config: MoeLlavaConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=getattr(self.config.text_config, "initializer_range", 0.02))
            if module.bias is not None:
                init.zeros_(module.bias)


class MoeLlavaModel(MoeLlavaPreTrainedModel):
    """Vision tower, projector and decoder, without the language head. A text-only model has only the decoder."""

    def __init__(self, config: MoeLlavaConfig) -> None:
        super().__init__(config)
        if config.vision_config is not None:
            self.vision_tower = AutoModel.from_config(config.vision_config)
            self.multi_modal_projector = build_projector(
                config.projector_type, config.vision_hidden_size, config.text_config.hidden_size
            )
        self.language_model = build_decoder(config.text_config)
        self.post_init()

    def get_patch_features(
        self, pixel_values: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image patch channel"]:
        """Patch features before the projector. Without gradients where the tower is frozen."""
        trains = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            return patch_features(
                self.vision_tower, pixel_values, self.config.vision_feature_layer, self.config.vision_prefix_tokens
            )

    def get_image_features(
        self,
        pixel_values: Float[Tensor, "image 3 height width"] | None = None,
        image_features: Float[Tensor, "image patch channel"] | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """Image tokens for the decoder in `pooler_output`: a list with one `(patch, width)` tensor per image.

        `image_features` are patch features computed before (see `get_patch_features`), read instead of pixels.
        """
        if self.config.vision_config is None:
            raise ValueError("This model is text-only: it has no vision tower to read images with.")
        if image_features is None:
            assert pixel_values is not None
            image_features = self.get_patch_features(pixel_values)
        tokens = self.multi_modal_projector(image_features.to(next(self.multi_modal_projector.parameters()).dtype))
        # A list, as transformers' own LLaVA returns: its generation hands single images around.
        return BaseModelOutputWithPooling(last_hidden_state=image_features, pooler_output=list(tokens))  # type: ignore[arg-type]

    def _merge(
        self,
        input_ids: Tensor,
        inputs_embeds: Float[Tensor, "batch token width"],
        image_outputs: BaseModelOutputWithPooling | None,
    ) -> Float[Tensor, "batch token width"]:
        """Put the images' tokens, in order, at the placeholders."""
        placeholders = input_ids == self.config.image_token_id
        if image_outputs is None:
            if not torch.compiler.is_compiling() and placeholders.any():
                raise ValueError(
                    f"The prompt has {int(placeholders.sum())} image tokens and no image: give pixel_values, or to "
                    "`generate` mm_encoder_outputs={'image': model.get_image_features(image_features=...)}."
                )
            if self.training and self.config.vision_config is not None:
                # Batches without an image touch the projector too: every process then reduces the same gradients.
                idle = inputs_embeds.new_zeros(1, 1, self.config.vision_hidden_size)
                inputs_embeds = inputs_embeds + 0.0 * self.multi_modal_projector(idle).sum()
            return inputs_embeds
        assert image_outputs.pooler_output is not None
        tokens = torch.cat(list(image_outputs.pooler_output)).to(inputs_embeds)
        if not torch.compiler.is_compiling() and int(placeholders.sum()) != tokens.shape[0]:
            raise ValueError(
                f"The prompt has {int(placeholders.sum())} image tokens and the images give {tokens.shape[0]}: "
                "let the processor expand `<image>`, once for each image."
            )
        return inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), tokens)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> MultimodalMoeBaseModelOutputWithPast:
        """Shapes as in `MoeLlavaForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        image_outputs = (mm_encoder_outputs or {}).get("image")
        if image_outputs is None and (pixel_values is not None or image_features is not None):
            image_outputs = self.get_image_features(pixel_values, image_features)
        if input_ids is not None:
            # A placeholder's id may lie outside the decoder's vocabulary; its embedding is overwritten anyway.
            text_ids = input_ids.masked_fill(input_ids == self.config.image_token_id, 0)
            inputs_embeds = self._merge(input_ids, self.get_input_embeddings()(text_ids), image_outputs)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, cache=cache, **kwargs
        )
        return MultimodalMoeBaseModelOutputWithPast(**outputs, image_outputs=image_outputs)


class MoeLlavaForConditionalGeneration(MoeLlavaPreTrainedModel, GenerationMixin):
    """A MoE-LLaVA: an ordinary `PreTrainedModel` that answers questions about images."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    accepts_loss_kwargs = True

    def __init__(self, config: MoeLlavaConfig) -> None:
        super().__init__(config)
        self.model = MoeLlavaModel(config)
        # In a tuple: the rule has no weights and must not appear among the sub-modules.
        self._logit_rule = (LogitRule(config.text_config),)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=self._logit_rule[0].has_bias
        )
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `MoeLlavaModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    def logits(self, hidden_states: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        """The family's head: linear map, and its own scale or soft-cap."""
        return self._logit_rule[0](self.lm_head(hidden_states))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        output_router_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        router_counts: Tensor | None = None,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> MoeLlavaOutput:
        """One pass, and with `labels` the loss.

        Args:
            input_ids: `(batch, token)`; each image takes `image_seq_length` placeholders.
            pixel_values: `(image, 3, height, width)`, all images of the batch in order; or
            image_features: `(image, patch, channel)`, the tower's features computed before.
            labels: `(batch, token)`, -100 where nothing is learned.
            num_items_in_batch: supervised tokens of the whole batch of which this is a piece (default: of this piece).
            router_counts: `(layer, expert)` first choices of the whole batch, see `load_balancing_loss`.
            skip_logits: with `labels`, compute the head at supervised positions only and return no logits.
        """
        text_config = self.config.text_config
        sparse = bool(getattr(text_config, "moe_layers", None))
        if output_router_logits is None:
            output_router_logits = sparse and (labels is not None or text_config.output_router_logits)
        if sparse:
            kwargs["output_router_logits"] = output_router_logits
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_features=image_features,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        logits = None
        if not (skip_logits and labels is not None):
            logits = self.logits(slice_logits_to_keep(hidden_states, logits_to_keep))

        loss = language_loss = aux_loss = None
        if labels is not None:
            loss = language_loss = self._language_loss(hidden_states, labels, num_items_in_batch)
            if outputs.router_logits:
                real = stack_real_tokens(outputs.router_logits, attention_mask)
                aux_loss, router_loss = self.router_losses(real, router_counts)
                loss = language_loss + router_loss
        return MoeLlavaOutput(
            loss=loss,
            language_loss=language_loss,
            aux_loss=aux_loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
            image_outputs=outputs.image_outputs,
        )

    def _language_loss(
        self,
        hidden_states: Float[Tensor, "batch token width"],
        labels: Tensor,
        num_items_in_batch: Tensor | int | None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the next token at supervised positions, over the supervised tokens of the whole batch."""
        targets = labels[:, 1:]
        supervised = targets != -100
        logits = self.logits(hidden_states[:, :-1][supervised])
        total = F.cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)), targets[supervised], reduction="sum"
        )
        items = supervised.sum() if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(items, device=total.device).clamp(min=1)

    def router_losses(
        self, logits: Float[Tensor, "layer token expert"], counts: Float[Tensor, "layer expert"] | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The balance loss summed over layers, and what the routers add to the loss; `logits` of real tokens only."""
        text_config = self.config.text_config
        aux_loss = load_balancing_loss(logits, counts).sum()
        # Not a product with zero, which would still walk back through the routers: no coefficient, no gradient.
        router_loss = aux_loss.new_zeros(())
        if text_config.router_aux_loss_coef:
            router_loss = router_loss + text_config.router_aux_loss_coef * aux_loss
        if z_coefficient := getattr(text_config, "router_z_loss_coef", 0.0):
            tokens = None if counts is None else counts[0].sum()
            router_loss = router_loss + z_coefficient * router_z_loss(logits, tokens).sum()
        return aux_loss, router_loss
