"""Keys and values that grow in place."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens, and an eighth of what is held


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` with room behind its last token: a new one is written there instead of copying all others.

    `keys` and `values` are views of the memory in use. Whoever sets them to something else is followed: the next update
    begins with memory of its own.
    """

    _memory: tuple[Tensor, Tensor] | None = None
    _views: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = key_states[..., :0, :]
            self.values = value_states[..., :0, :]
        assert self.keys is not None and self.values is not None
        start, length = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if not self._fits(length):
            self._memory = (_grown(self.keys, length), _grown(self.values, length))
        assert self._memory is not None
        for memory, new in zip(self._memory, (key_states, value_states), strict=True):
            memory[..., start:length, :] = new
        self.keys, self.values = (memory[..., :length, :] for memory in self._memory)
        self._views = (self.keys, self.values)
        return self.keys, self.values

    def _fits(self, length: int) -> bool:
        mine = self._views is not None and self._views[0] is self.keys and self._views[1] is self.values
        return mine and self._memory is not None and length <= self._memory[0].shape[-2]

    def __copy__(self) -> "GrowingLayer":
        """A copy writes into memory of its own."""
        copied = type(self).__new__(type(self))
        copied.__dict__ |= self.__dict__ | {"_memory": None, "_views": None}
        return copied


def _grown(held: Tensor, length: int) -> Tensor:
    memory = held.new_empty(*held.shape[:-2], length + ROOM + length // 8, held.shape[-1])
    memory[..., : held.shape[-2], :] = held
    return memory


class GrowingCache(DynamicCache):
    """A cache of `GrowingLayer`, one a decoder layer, made when it is first written."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer
