"""Sets of options under a name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_llava.bench.block import Shape
from moe_llava.bench.run import Options

PROFILES: dict[str, dict[str, Any]] = {
    "full": {"quantize": ("int8", "int4")},
    # A minute: whether everything runs, and roughly how fast.
    "quick": {
        "parts": ("block", "answer", "train"),
        "rounds": 3,
        "tokens": (1, 64, 576),
        "train_tokens": (256,),
        "shape": Shape(512, 1408),
        "shapes": ("stablelm-1.6b",),
        "quantize": ("int8", "int4"),
        "sparse_only": True,
        "layers": 2,
        "budget": 5.0,
    },
    # One NVIDIA GPU of 24 GB or more.
    "gpu": {"device": "cuda", "shape": Shape(2048, 5632), "rounds": 21},
}
_NUMBERS = ("tokens", "train_tokens")
_NAMES = ("parts", "dtypes", "directions", "shapes", "quantize")


def options_of(profile: str, given: Mapping[str, Any]) -> Options:
    """The options of a profile with what the command line says in their place.

    Raises:
        ValueError: a number that is none.
    """
    fields: dict[str, Any] = dict(PROFILES[profile])
    for name, value in given.items():
        if name in _NUMBERS:
            try:
                value = tuple(int(one) for one in value.split(","))
            except ValueError:
                raise ValueError(f"--tokens {value}: give whole numbers with commas between them.") from None
        elif name in _NAMES:
            value = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
        elif name == "folder":
            value = Path(value)
        fields[name] = value
    return Options(**fields)
