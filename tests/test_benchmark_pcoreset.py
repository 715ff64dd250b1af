"""benchmarks/pcoreset.py: students side by side are students alone, and what is done is kept."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """The script, its trainings short."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "pcoreset", raising=False)
    made = importlib.import_module("pcoreset")
    monkeypatch.setattr(made, "STEPS", 5)
    yield made
    del sys.modules["pcoreset"]


def test_students_side_by_side_are_as_if_alone(script, monkeypatch):
    data = script._Digits(3, "tail")
    chosen = np.stack([np.random.default_rng(n).permutation(200)[:12] for n in range(6)])
    together = script._students(data, chosen)
    for arm in (0, 5):
        monkeypatch.setattr(script, "ARMS", [[*script.ARMS][arm]])
        alone = script._students(data, chosen[arm : arm + 1])
        torch.testing.assert_close(together[arm], alone[0], rtol=1e-4, atol=1e-5)
        monkeypatch.undo()
        monkeypatch.setattr(script, "STEPS", 5)


def test_no_photo_is_chosen_twice_and_entropy_takes_the_unsure(script):
    random = np.random.default_rng(0)
    points = random.dirichlet(np.ones(10), 50)
    points[7] = 0.1
    for choice in script.CHOICES:
        found = script._chosen(choice, points, [0, 1, 2], random)
        assert len(set(found)) == script.QUERY
        assert not {0, 1, 2} & set(found)
        assert choice != "entropy" or found[0] == 7


def _rows(part, seed):
    """Invented results, of which pcoreset's are the better ones."""
    gain = {"random": 0.0, "entropy": 0.1, "even": 0.0, "pcoreset": 0.2}
    wobble = 0.01 * (seed % 3)
    if part == "calibration":
        return [
            {"choice": how, "mae_int8": 1 - gain[how] + wobble, "sqnr_db": 30 + gain[how]}
            for how in ("even", "random", "pcoreset")
        ]
    return [
        {"pool": pool, "loss": loss, "choice": choice, "accuracy": [0.0, gain[choice] + wobble]}
        for pool in ("even", "tail")
        for loss, choice in ((a, b) for a in ("kd", "pool") for b in gain if b != "even")
    ]


def test_a_run_goes_on_where_it_stopped(script, tmp_path, monkeypatch):
    file, ran, resumed = tmp_path / "found.json", [], []

    def run(one, jobs, processes):
        for job in jobs:
            if len(ran) == 9 and not resumed:
                raise KeyboardInterrupt
            ran.append(job)
            yield [{"part": job[0], "seed": job[1], **row} for row in _rows(*job)]

    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr(sys, "argv", ["pcoreset.py", "-o", str(file)])
    with pytest.raises(KeyboardInterrupt):
        script.main()
    resumed.append(True)
    script.main()
    assert ran == [(part, seed) for part in script.PARTS for seed in range(8)]
    found = json.loads(file.read_text())["summary"]
    gain = found["accuracy, tail, kd"]["- entropy"]
    assert gain["difference"] == pytest.approx(0.1)
    assert found["mae_int8"]["- random"]["lower_in"] == "8 of 8"
