"""Samples of any kind make one batch."""

import pytest
import torch

from moe_llava.data import Collator


def sample(length: int, **images: torch.Tensor) -> dict[str, torch.Tensor]:
    ids = torch.arange(1, length + 1)
    return {"input_ids": ids, "labels": ids.clone(), **images}


def test_padding_is_on_the_right_and_never_supervised() -> None:
    batch = Collator(pad_token_id=9)([sample(3), sample(1)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [1, -100, -100]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("name", ["pixel_values", "image_features"])
def test_images_of_all_samples_in_order(name: str) -> None:
    first, last = torch.zeros(1, 3, 4), torch.ones(2, 3, 4)
    batch = Collator(0)([sample(2, **{name: first}), sample(2), sample(2, **{name: last})])
    assert torch.equal(batch[name], torch.cat([first, last]))


def test_pixels_and_features_do_not_mix() -> None:
    with pytest.raises(ValueError, match="feature store for all or for none"):
        Collator(0)([sample(1, pixel_values=torch.zeros(1, 3, 2, 2)), sample(1, image_features=torch.zeros(1, 2, 2))])
