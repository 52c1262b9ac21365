"""Conversations read as they are trained on: from JSON Lines, Parquet, tar shards and Hugging Face data sets."""

from moe_llava.data.stream.dataset import StreamDataset, StreamMixture
from moe_llava.data.stream.order import BlockShuffle
from moe_llava.data.stream.rows import Row, Rows
from moe_llava.data.stream.sources import open_rows

__all__ = ["BlockShuffle", "Row", "Rows", "StreamDataset", "StreamMixture", "open_rows"]
