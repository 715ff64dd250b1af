"""The fixtures of the recipes can be read, are complete, small and described."""

import pytest
import torch
from recipe_fixtures import FOLDER, METHODS, load

README = (FOLDER / "README.md").read_text()
MOST_BYTES = 40_000


@pytest.mark.parametrize("method", METHODS)
def test_a_fixture_is_complete_small_and_listed(method):
    fixture = load(method)
    assert fixture["method"] == method
    assert f"| `{method}` |" in README
    assert (FOLDER / f"{method}.json").stat().st_size < MOST_BYTES
    assert any(case["right"] for case in fixture["cases"].values())
    for case in fixture["cases"].values():
        assert case["call"]
        assert isinstance(case["value"], float)
        for name, gradient in case["gradients"].items():
            assert gradient.shape == case["inputs"][name].shape
            assert gradient.isfinite().all()


def test_a_cases_own_inputs_stand_before_the_shared_ones_and_are_exact():
    shared, own = (load("at")["cases"][name]["inputs"] for name in ("paper", "paper-zero"))
    assert shared["student"].dtype == torch.float64
    assert torch.equal(shared["teacher"], own["teacher"])
    assert shared["student"][1].any()
    assert not own["student"][1].any()
    assert torch.equal(shared["student"], shared["student"].round(decimals=6))


def test_labels_are_integers_and_further_results_are_kept():
    case = load("nd")["cases"]["both-branches"]
    assert case["inputs"]["labels"].dtype == torch.int64
    assert case["values"]["longer"].tolist() == [False, True, False, True]
    assert case["values"]["rows"].mean().item() == pytest.approx(case["value"], rel=1e-12)
