"""The example's data: scikit-learn's scans, the same canvases every time, no scan in two splits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from kdcompile import targets
from kdcompile.config.load import load_spec
from kdcompile.core.user_code import load_factory
from kdcompile.latency_model.network_cost import Network
from kdcompile.models.factory import load_teacher
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.passes.search import _predicted as predicted_costs
from kdcompile.passes.verify import predictions
from kdcompile.search.spaces.pruned import architectures
from kdcompile.tasks.task import preprocess_of

FOLDER = Path(__file__).parents[1] / "examples" / "digits"


@pytest.fixture(scope="module")
def photos():
    return load_factory("canvases.py:photos", FOLDER)


def test_the_scans_are_scikit_learns():
    expected = np.round(load_digits().images / 16 * 255).astype(np.uint8)
    with np.load(FOLDER / "digits.npz") as archive:
        assert np.array_equal(archive["images"], expected)


def test_a_name_always_means_the_same_canvases(photos):
    first, again = photos(FOLDER, "train:8"), photos(FOLDER, "train:8")
    assert all(np.array_equal(a.array, b.array) for a, b in zip(first, again, strict=True))
    other = photos(FOLDER, "train:8:1")
    assert not any(np.array_equal(a.array, b.array) for a, b in zip(first, other, strict=True))


def test_points_lie_on_ink(photos):
    for photo in photos(FOLDER, "test:30"):
        assert photo.array.shape == (64, 64, 1)
        assert photo.count <= 10
        for x, y in photo.points.astype(int):
            patch = photo.array[y - 5 : y + 6, x - 5 : x + 6]
            assert patch.mean() > photo.array.mean()


def test_a_larger_canvas_is_as_dense_and_the_side_is_in_the_name(photos):
    small, large = photos(FOLDER, "test:200"), photos(FOLDER, "test:24@128")
    assert {photo.array.shape for photo in large} == {(128, 128, 1)}
    assert max(photo.count for photo in large) <= 40
    per_pixel = [np.mean([p.count / p.array.size for p in some]) for some in (small, large)]
    assert per_pixel[1] == pytest.approx(per_pixel[0], rel=0.25)
    for photo in large:
        x, y = photo.points.T
        assert ((photo.points >= 6) & (photo.points <= 122)).all()
        near = np.hypot(x[:, None] - x, y[:, None] - y) + 9 * np.eye(len(x))
        assert near.min(initial=9) >= 9 - 1e-4


def test_the_teacher_counts_large_canvases_too(photos):
    spec = load_spec(FOLDER / "kdcompile.toml")
    teacher = load_teacher(spec).eval()
    prepare = preprocess_of(spec)
    errors = []
    for photo in photos(FOLDER, "val:4@512"):
        with torch.no_grad():
            count = teacher(torch.from_numpy(prepare(photo.pixels(1)))).sum()
        errors.append(abs(float(count) - photo.count))
    assert np.mean(errors) < 4, "of 320 digits"


def test_the_example_has_work_for_a_jetson_over_its_gate():
    """The predicted band lies over the gate in every precision that may ship."""
    spec, target = load_spec(FOLDER / "kdcompile.toml"), targets.load("jetson")
    shape = spec.export.profile[1]
    teacher = load_teacher(spec)
    width = spec.student.budget.width
    made = architectures(teacher, shape, target.channel_tile, spec.seed, [width])[0]
    student = student_from_architecture(teacher, made, FOLDER).eval()
    networks = Network(teacher, shape), Network(student, shape)
    found = predictions(predicted_costs(*networks, target, ("fp16", "fp16")))
    assert spec.gates.speedup.min >= 1.5
    assert found["int8"].teacher / found["int8"].student >= 3
    for precision in ("fp16", "int8"):
        one = found[precision]
        low, _ = one.speedup
        assert low > 1.02 * spec.gates.speedup.min, precision


def test_an_empty_canvas_occurs(photos):
    counts = [photo.count for photo in photos(FOLDER, "val:100")]
    assert 0 in counts
    assert max(counts) == 10
