"""The `[search]` section, and what a student of family `search` needs."""

import pytest
from tiny_training import SPEC

from kdcompile.config.distill import SCALES, Search
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.models.blocks import BLOCKS
from kdcompile.models.staged import SCALES as BUILT

SEARCH = ("student.family=search", "student.budget={speedup=2}")


@pytest.fixture
def load(tmp_path):
    def loaded(*sets):
        (tmp_path / "kdcompile.toml").write_text(SPEC)
        return load_spec(tmp_path / "kdcompile.toml", sets)

    return loaded


def test_what_may_be_asked_for_can_be_built():
    assert set(SCALES) == set(BUILT)
    assert Search(blocks=list(BLOCKS), scales=list(SCALES)) == Search()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"blocks": ["conv", "conv"]}, "blocks names one twice"),
        ({"scales": [0.5, 0.5]}, "scales names one twice"),
        ({"scales": [0.3]}, "scales are of 1.0, 0.75, 0.5"),
        ({"blocks": []}, "at least 1"),
        ({"blocks": ["dense"]}, "'conv', 'separable', 'repvgg' or 'bottleneck'"),
        ({"space": "all"}, "'auto', 'staged' or 'layers'"),
        ({"candidates": 9}, "greater than or equal to 10"),
        ({"finalists": -1}, "greater than or equal to 0"),
        ({"jobs": -1}, "greater than or equal to 0"),
        ({"block_step": 5}, "Extra inputs are not permitted"),
    ],
)
def test_values_that_cannot_be(values, words):
    with pytest.raises(ValueError, match=words):
        Search(**values)


def test_a_search_needs_a_budget_that_is_no_width(load):
    with pytest.raises(KDError) as refused:
        load("student.family=search")
    assert refused.value.code == "spec-invalid"
    assert "needs a budget of speedup, latency_ms or macs" in str(refused.value)
    assert load(*SEARCH).student.searches


def test_only_an_unwritten_student_is_searched_for(load):
    assert not load().student.searches
    given = load(*SEARCH, "student.init=file", "student.weights=s.safetensors")
    assert not given.student.searches
    assert load(*SEARCH, "student.init=random").student.searches
