"""What MoE-LLaVA and LLaVA-1.5 published, turned into checkpoints of this library."""

from moe_llava.checkpoint.original.conversion import Conversion, convert

__all__ = ["Conversion", "convert"]
