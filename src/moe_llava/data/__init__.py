"""Conversations -> batches: reading, templates, tokens, images, datasets."""

from transformers import AutoProcessor

from moe_llava.data.collate import Collator
from moe_llava.data.conversation import IMAGE_TOKEN, Conversation, Message, read_conversations, scan
from moe_llava.data.dataset import ConversationDataset, Mixture, mixture
from moe_llava.data.features import FeatureStore, tower_key
from moe_llava.data.images import load_image, to_rgb
from moe_llava.data.inspect import CheckReport, check, preview
from moe_llava.data.pixels import MoeLlavaImageProcessor
from moe_llava.data.problems import DataError, Problem
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.data.sampler import LengthGroupedSampler
from moe_llava.data.template import TEMPLATES, Segment, render, resolve_template
from moe_llava.data.tokenizer import prepare_tokenizer, train_tokenizer
from moe_llava.data.tokens import IGNORE_INDEX
from moe_llava.model.config import MoeLlavaConfig

AutoProcessor.register(MoeLlavaConfig, MoeLlavaProcessor)

__all__ = [
    "IGNORE_INDEX",
    "IMAGE_TOKEN",
    "TEMPLATES",
    "CheckReport",
    "Collator",
    "Conversation",
    "ConversationDataset",
    "DataError",
    "FeatureStore",
    "LengthGroupedSampler",
    "Message",
    "Mixture",
    "MoeLlavaImageProcessor",
    "MoeLlavaProcessor",
    "Problem",
    "Segment",
    "check",
    "load_image",
    "mixture",
    "prepare_tokenizer",
    "preview",
    "read_conversations",
    "render",
    "resolve_template",
    "scan",
    "to_rgb",
    "tower_key",
    "train_tokenizer",
]
