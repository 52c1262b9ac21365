"""What a user reads when data cannot be used."""

import pickle

from moe_llava.data import DataError, Problem


def test_one_sentence_a_problem_and_the_count() -> None:
    error = DataError([Problem("a.json:3", "image", "is missing; add it")])
    assert str(error) == "1 problem in the data:\n  a.json:3: image: is missing; add it"


def test_shows_the_first_twenty_and_how_many_more() -> None:
    lines = str(DataError([Problem(f"a.json:{line}", "image", "x") for line in range(1, 31)])).splitlines()
    assert len(lines) == 22
    assert lines[0].startswith("30 problems")
    assert lines[-1].strip() == "... and 10 more"


def test_survives_a_trip_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DataError([Problem("a", "b", "c")])))
    assert error.problems == [Problem("a", "b", "c")]
