"""Where tokens stand in their samples, however the passes that read them are cut."""

import numpy as np
import pytest

from moe_llava.routing.sequences import Sequences


def made_passes() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Two samples read together, then one token each until sample 1 leaves; then sample 2: sample, is_image, ends."""
    prompt = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0, 1, 1, 0, 0, 1, 1]), np.zeros(7)
    steps = [(np.array([0, 1]), np.zeros(2), np.zeros(2)), (np.array([0]), np.zeros(1), np.ones(1))]
    after = np.array([0]), np.zeros(1), np.zeros(1)
    return [prompt, *steps, after, (np.array([2, 2]), np.array([1, 0]), np.zeros(2))]


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3, 4], [2, 4]])
def test_pieces_are_placed_as_the_whole(cuts: list[int]) -> None:
    sequences, found = Sequences(), []
    passes = made_passes()
    for start, stop in zip([0, *cuts], [*cuts, len(passes)], strict=True):
        for number in range(start, stop):
            if number in (0, 4):
                sequences.begin(2 if number == 0 else 1, ["a", "b"] if number == 0 else ())
            elif number == 2:
                sequences.keep([0])
        sample, is_image, ends = (np.concatenate(parts) for parts in zip(*passes[start:stop], strict=True))
        names = sequences.names_of(sample)
        found.append((*sequences.place(sample, is_image.astype(bool), ends.astype(bool)), names))
        sequences.forget()
    position, patches, ended, names = (np.concatenate(parts).tolist() for parts in zip(*found, strict=True))
    assert position == [0, 1, 2, 3, 0, 1, 2, 4, 3, 5, 6, 0, 1]
    assert patches == [0, 0, 1, 2, 0, 0, 1, 2, 2, 2, 2, 0, 1]
    assert ended == [False] * 9 + [True, True] + [False] * 2
    assert names == ["a"] * 4 + ["b"] * 3 + ["a", "b", "a", "a", "2", "2"]
    assert sequences._names.keys() == {2}
