"""benchmarks/recipes.py: its page is made of the kept runs, and says what they say."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import recipes
    import recipes_page

    yield recipes, recipes_page
    for name in ("recipes", "recipes_page", "recipes_tasks", "paired"):
        sys.modules.pop(name, None)


def _rows(arms, task="scarce", seeds=6):
    """Runs of arms by their top-1 at seed 0; seeds differ, alike in every arm but for a trifle."""
    rows = {}
    for arm, (value, length, ratio) in arms.items():
        name = arm.partition("*")[0]
        for seed in range(seeds):
            own = value + 0.02 * seed + 0.0005 * ((seed * len(arm)) % 3)
            rows[f"task/{task}/{arm}/{seed}"] = {
                "kind": "task", "name": task, "arm": name, "seed": seed, "length": length,
                "values": {"top1": own}, "s": 1.0,
            }  # fmt: skip
        cost = {"kind": "cost", "name": task, "arm": name, "seed": 0, "ms": 1.0, "ratio": ratio}
        rows[f"cost/{task}/{name}"] = cost
    return rows


def test_verdicts_are_against_kd_of_the_same_time(benchmark):
    _, page = benchmark
    text = page.page(_rows({
        "none": (0.50, 1.0, 0.5), "kd": (0.60, 1.0, 1.0), "kd*2": (0.70, 2.0, 1.0),
        "at": (0.65, 1.0, 1.9), "dist": (0.65, 1.0, 1.0), "spkd": (0.6001, 1.0, 1.04),
        "rkd": (0.75, 1.0, 3.5),
    }))  # fmt: skip
    text = text[text.index("## Classes") : text.index("## What some")]
    rows = {line.split("|")[1].strip(" `"): line for line in text.splitlines() if "| `" in line}
    verdicts = {name: rows[name].split("|")[-2].strip() for name in rows}
    assert verdicts["none"] == "the baseline"
    assert (verdicts["kd"], verdicts["dist"], verdicts["at"]) == ("helps", "helps", "hurts here")
    assert (verdicts["spkd"], verdicts["rkd"]) == ("neutral", "helps")
    assert "> +5.0" in rows["rkd"]  # it takes longer than the longest rival
    assert "+15.0" in rows["at"]
    assert "3.50" in rows["rkd"]


def test_few_seeds_are_no_verdict(benchmark):
    _, page = benchmark
    text = page.page(_rows({"none": (0.5, 1.0, 0.5), "kd": (0.6, 1.0, 1.0)}, seeds=3))
    assert "too few seeds" in text
    assert "| helps |" not in text


def test_a_refusal_is_told(benchmark):
    _, page = benchmark
    rows = _rows({"none": (0.5, 1.0, 0.5), "kd": (0.6, 1.0, 1.0)})
    run = {"kind": "task", "name": "scarce", "arm": "skt", "seed": 0, "length": 1.0}
    rows["task/scarce/skt/0"] = run | {"refused": "recipe skt is for counting"}
    assert "- recipe skt is for counting" in page.page(rows)


def test_the_page_is_that_of_the_kept_runs(benchmark):
    recipes, page = benchmark
    made = page.page(recipes.kept(recipes.RESULTS) | recipes.kept(recipes.OF_PHOTOS))
    written = (BENCHMARKS.parent / "docs" / "recipes.md").read_text()
    assert written == made, "python benchmarks/recipes.py --page docs/recipes.md"


def test_an_arm_differs_by_what_it_names_alone(benchmark):
    recipes, _ = benchmark
    for check in recipes.CHECKS:
        (_, one), (_, other) = check.arms
        assert one != other
        folder, sets = recipes.settings(recipes.Job("check", check.recipe, check.arms[1][0], 3))
        assert folder.name == "recipe_tasks"
        assert "seed=3" in sets
        assert not any("{seed}" in text for text in sets)
    job = recipes.Job("task", "counting", "skt", 5, 2.0)
    assert recipes.settings(job)[0].name == "digits"
    assert "data.train=train:32:5" in recipes.settings(job)[1]
    assert job.key != recipes.Job("task", "counting", "skt", 5).key
