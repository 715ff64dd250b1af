"""The engines, their layers and the sensitivity, as a report has them."""

import pytest

from kdcompile.core.files import write_json
from kdcompile.core.store import Store
from kdcompile.gates.summary import compiled_details


@pytest.fixture
def inputs(tmp_path):
    """`inputs(compile=files, calibrate=files)` -> the two artifacts."""

    def make(**stages):
        store = Store(tmp_path / "store")

        def put(stage, files):
            def build(folder):
                for name, content in files.items():
                    write_json(folder / name, content)
                return {}

            return store.make(stage, "0" * 24, build)

        return {name: put(name, stages.get(name, {})) for name in ("compile", "calibrate")}

    return make


def engines(layers, typed=(), total=None, **build):
    total = sum(layer["ms"] for layer in layers) if total is None else total
    built = {"bytes": 7, "seconds": 1.5, "flags": ["FP16"], "layers": list(typed), **build}
    profile = {"layers": layers, "total_ms": total}
    return {
        "choice.json": {"precision": "fp16"},
        "engines.json": {"fp16": {"build": built, "profile": profile}},
    }


def test_nothing_without_engines(inputs):
    assert compiled_details(inputs(compile={"choice.json": {"precision": "fp32"}})) == {}


def test_layers_are_sorted_by_time_with_their_share(inputs):
    layers = [
        {"name": "a", "ms": 1.0, "precision": "fp16"},
        {"name": "b", "ms": 3.0, "precision": None},
        {"name": "c", "ms": 0.0},
    ]
    found = compiled_details(inputs(compile=engines(layers, [{"name": "b", "precision": "int8"}])))
    assert found["layers"] == [
        {"name": "b", "ms": 3.0, "share": 0.75, "precision": "int8"},
        {"name": "a", "ms": 1.0, "share": 0.25, "precision": "fp16"},
        {"name": "c", "ms": 0.0, "share": 0.0, "precision": None},
    ]
    assert found["engines"]["fp16"] == {
        "bytes": 7, "seconds": 1.5, "flags": ["FP16"],
        "timing_cache": None, "deterministic": None, "dla_fallback": None,
    }  # fmt: skip


def test_a_deep_network_shows_its_slowest_layers(inputs):
    layers = [{"name": f"l{i}", "ms": float(i)} for i in range(60)]
    rows = compiled_details(inputs(compile=engines(layers)))["layers"]
    assert len(rows) == 40
    assert rows[0]["name"] == "l59"
    assert sum(row["share"] for row in rows) < 1  # of all layers, the hidden ones too


def test_layers_that_take_no_time_have_no_share(inputs):
    rows = compiled_details(inputs(compile=engines([{"name": "a", "ms": 0.0}])))["layers"]
    assert rows[0]["share"] is None


def test_an_engine_that_was_not_profiled(inputs):
    files = engines([])
    files["engines.json"]["fp16"]["profile"] = None
    found = compiled_details(inputs(compile=files))
    assert found["layers"] == []
    assert found["engines"]["fp16"]["bytes"] == 7


def test_a_backend_that_names_no_layers(inputs):
    files = engines([{"name": "a", "ms": 1.0}])
    files["engines.json"]["fp16"]["build"]["layers"] = None
    assert compiled_details(inputs(compile=files))["layers"][0]["precision"] is None


def test_mixed_and_sensitivity_are_told(inputs):
    outcome = {"metric": 2.0, "sqnr_db": 30.0}
    layer = {"layer": "c0", "macs_share": 0.4, "alone": outcome, "without": outcome, "macs": 5}
    found = compiled_details(
        inputs(
            compile={"mixed.json": {"summary": "1 of 2", "reasons": {"c1": "reverted"}}},
            calibrate={"sensitivity.json": {"layers": [layer]}},
        )
    )
    assert found["mixed"] == {"summary": "1 of 2", "in fp16": {"c1": "reverted"}}
    assert found["sensitivity"] == [
        {"layer": "c0", "macs_share": 0.4, "alone_sqnr_db": 30.0, "alone_metric": 2.0,
         "without_sqnr_db": 30.0, "without_metric": 2.0},
    ]  # fmt: skip
