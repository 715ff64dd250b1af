"""Baselines and benchmarks by the Python API, on a simulated device."""

import pytest
from bench_line import BenchLine

from kdcompile import api
from kdcompile.core.errors import KDError
from kdcompile.latency.baseline import read_baseline


@pytest.fixture
def line(monkeypatch, capsys, tmp_path):
    made = BenchLine(monkeypatch, capsys, tmp_path)
    made.network("net", 1.0)
    return made


def test_a_baseline_is_made_added_to_and_listed(line):
    kept = api.init_baseline("net.onnx", "crowd", folder="kept", who="me", mode={})
    assert (kept.file.parent.parent.name, kept.name, kept.device_class) == (
        "kept", "crowd", "played",
    )  # fmt: skip
    more = api.update_baseline("net.onnx", "crowd", folder="kept", why="another day", add=True)
    assert len(more.baseline.samples.runs) == 6
    (found,) = api.baselines(folder="kept").baselines
    assert [change["why"] for change in found.history] == ["first baseline", "another day"]
    assert found.history[0]["who"] == "me"
    assert api.baselines("crowd", folder="kept", device="played").baselines == (found,)
    with pytest.raises(KDError, match="already") as error:
        api.init_baseline("net.onnx", "crowd", folder="kept")
    assert error.value.code == "baseline-exists"


def test_a_saved_baseline_is_replaced_for_a_reason_only(line):
    api.bench("net.onnx", save="b.json")
    with pytest.raises(KDError) as error:
        api.bench("net.onnx", save="b.json")
    assert error.value.code == "baseline-exists"
    api.bench("net.onnx", save="b.json", why="a new machine")
    assert [change["why"] for change in read_baseline(line.folder / "b.json").history] == [
        "kdcompile bench --save", "a new machine",
    ]  # fmt: skip


def test_several_runs_are_one_where_the_two_are_interleaved(line):
    """Without the baseline's artifact each run stands for itself: they show its sessions."""
    api.bench("net.onnx", save="b.json")
    line.network("other", 1.0, seed=1)
    found = api.bench("other.onnx", baseline="b.json", runs=2, seconds=5)
    assert (len(found.samples.runs), found.compared.comparison.paired) == (1, True)
    assert len(found.samples.runs[0].builds[0].processes) == 6
    (line.folder / "net.onnx").unlink()
    found = api.bench("other.onnx", baseline="b.json", runs=2, seconds=5)
    assert (len(found.samples.runs), found.compared.comparison.paired) == (2, False)


def test_photos_are_a_bundles(line):
    with pytest.raises(KDError) as error:
        api.bench("net.onnx", images=["a.jpg"])
    assert error.value.code == "bench-arguments"
    assert "bundle" in error.value.fix
