"""Two runs side by side: paired differences, intervals, tests, a chart."""

import json
from pathlib import Path

import numpy as np
import pytest

from moe_llava.evaluate.compare import bootstrap, compare, mcnemar, rows, write


def run(folder: Path, marks: dict[str, dict[str, float]]) -> Path:
    for name, of in marks.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "marks.json").write_text(json.dumps(of))
        figure = 100 * sum(of.values()) / len(of)
        (folder / name / "scores.json").write_text(json.dumps({"benchmark": name, "figure": figure}))
    return folder


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(2, 8) == mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(4000, 4400) == pytest.approx(1.3e-5, rel=0.05)  # no overflow; the normal approximation agrees


def test_the_bootstrap_interval_is_that_of_drawing_questions() -> None:
    values = np.repeat([0.0, 100.0], [300, 700])
    low, high = bootstrap(values)
    error = 1.96 * values.std() / np.sqrt(1000)
    assert (low, high) == (pytest.approx(70 - error, abs=0.3), pytest.approx(70 + error, abs=0.3))
    assert bootstrap(values) == (low, high)
    assert bootstrap(np.ones(5)) == (1.0, 1.0)


def test_two_runs_are_compared_question_by_question(tmp_path: Path) -> None:
    ids = [str(n) for n in range(200)]
    worse = {key: float(int(key) % 2) for key in ids}
    better = {key: 1.0 if int(key) < 40 else worse[key] for key in ids}
    soft = dict.fromkeys(ids, 0.3)
    a = run(tmp_path / "a", {"pope": worse, "gqa": worse, "textvqa": soft})
    b = run(tmp_path / "b", {"pope": dict(reversed(better.items())), "textvqa": soft})
    pope, textvqa = compare(a, b)
    assert (pope.benchmark, pope.n, pope.only_a, pope.only_b) == ("pope", 200, 0, 20)
    assert pope.marks == (50.0, 60.0) and pope.difference == pytest.approx(10.0)
    assert pope.interval[0] > 5 and pope.p == pytest.approx(2 / 2**20)
    assert textvqa.difference == 0 and textvqa.p == 1
    assert [row[-1] for row in rows([pope, textvqa])] == ["McNemar p", "< 0.0001", "1"]
    write([pope, textvqa], a, b, tmp_path / "out")
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out" / "compare.svg").read_text()
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["benchmarks"][0]["only_b"] == 20


def test_runs_that_were_not_asked_the_same_do_not_compare(tmp_path: Path) -> None:
    a = run(tmp_path / "a", {"pope": {"1": 1.0, "2": 0.0}})
    with pytest.raises(ValueError, match=r"1 questions are in one of them only \(first 2\)"):
        compare(a, run(tmp_path / "b", {"pope": {"1": 1.0}}))
    with pytest.raises(ValueError, match="share no benchmark"):
        compare(a, run(tmp_path / "c", {"gqa": {"1": 1.0}}))
    with pytest.raises(ValueError, match="holds no scored evaluation"):
        compare(a, tmp_path / "nowhere")
