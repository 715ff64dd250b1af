"""What is written is read back as it was, whatever names and numbers are in it."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from bench_samples import made
from hypothesis import given, settings
from hypothesis import strategies as st
from parsers import about, calibration

from kdcompile.bundle import form
from kdcompile.bundle.manifest import read_manifest
from kdcompile.calib.calibrate import tensors_to_observe
from kdcompile.calib.table import CalibrationTable, tensor_range
from kdcompile.calib.trt_cache import read_cache, write_cache
from kdcompile.config.spec import Data, Spec
from kdcompile.core.files import write_json
from kdcompile.core.report import GateResult, Measurement, Report
from kdcompile.data.formats.npz import photos
from kdcompile.data.formats.points_jsonl import entries
from kdcompile.latency.baseline import make_baseline, read_baseline
from kdcompile.stats.samples import samples_from_json
from kdcompile.targets import user

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NAME = st.text(st.characters(categories=("L", "N"), max_codepoint=0x24F), min_size=1, max_size=12)
NUMBER = st.floats(allow_nan=False)
POSITIVE = st.floats(1e-30, 1e30)
MEASUREMENTS = st.builds(
    Measurement, TEXT, NUMBER, TEXT, st.sampled_from(["device", "host", "predicted"]),
    low=st.none() | NUMBER, n=st.none() | st.integers(0), machine=TEXT,
)  # fmt: skip
VERDICTS = st.sampled_from(["passed", "failed", "inconclusive", "skipped", "pending"])
GATES = st.builds(
    GateResult, TEXT, VERDICTS, st.sampled_from(["device", "host"]), st.booleans(), TEXT, TEXT,
    TEXT, st.lists(MEASUREMENTS, max_size=2).map(tuple),
)  # fmt: skip
DETAILS = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBER | TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXT, below, max_size=3),
    max_leaves=8,
)
quick = settings(max_examples=25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("round")


@quick
@given(st.builds(
    Report, TEXT, TEXT, TEXT, st.integers(0, 5), st.lists(GATES, max_size=2).map(tuple),
    st.lists(MEASUREMENTS, max_size=2).map(tuple), st.dictionaries(TEXT, DETAILS, max_size=2),
    st.dictionaries(TEXT, DETAILS, max_size=3),
))  # fmt: skip
def test_report(report):
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


@quick
@given(st.dictionaries(TEXT, st.tuples(POSITIVE, st.floats(0, 1)), min_size=1, max_size=4),
       st.lists(st.tuples(TEXT, NAME), min_size=1, max_size=3))  # fmt: skip
def test_calibration_table(ranges, images):
    tensors = {name: tensor_range(amax, lost, -amax, amax) for name, (amax, lost) in ranges.items()}
    table = CalibrationTable("entropy", "a" * 64, tuple(images), tensors)
    with tempfile.TemporaryDirectory() as place:
        table.write(Path(place, "table.json"))
        assert CalibrationTable.read(Path(place, "table.json")) == table


@quick
@given(st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=8, max_size=8))
def test_calibration_cache_of_tensorrt(folder, amaxes):
    from onnx_graphs import chain

    model = chain(1)
    assert isinstance(model, onnx.ModelProto)
    names = tensors_to_observe(model)
    tensors = {n: tensor_range(a, 0.0, -a, a) for n, a in zip(names, amaxes, strict=False)}
    table = CalibrationTable("entropy", "a" * 64, (("a", "b"),), tensors)
    write_cache(table, folder / "cache", "8601")
    found = read_cache(folder / "cache", model)
    for name, entry in tensors.items():
        assert found.tensors[name].scale == np.float32(entry.scale)


@quick
@given(TEXT.filter(bool).filter(str.isprintable), st.lists(NAME, min_size=1, max_size=4),
       st.none() | st.lists(TEXT, max_size=3))  # fmt: skip
def test_manifest(folder, name, files, classes):
    listed = {f"sub/{i}{n}": {"sha256": "a" * 64, "bytes": i} for i, n in enumerate(files)}
    values = about() | {"name": name, "classes": classes}
    values["files"] |= listed
    write_json(folder / form.NAME, form.sealed(values))
    assert read_manifest(folder) == form.sealed(values)


@quick
@given(st.floats(1e-3, 1e3), st.integers(3, 4), TEXT.filter(str.strip), TEXT)
def test_baseline_and_its_samples(folder, ms, runs, who, why):
    samples = made(ms, runs=runs, processes=1, blocks=2, inferences=3)
    assert samples_from_json(json.loads(json.dumps(samples.to_json()))) == samples
    file = folder / "base.json"
    baseline = make_baseline(samples, folder / "net.onnx", file, who, why)
    baseline.write(file)
    assert read_baseline(file) == baseline


@quick
@given(TEXT, st.dictionaries(TEXT, POSITIVE, min_size=1, max_size=3), POSITIVE)
def test_calibration_of_a_target(monkeypatch_module, folder, text, values, residual):
    monkeypatch_module.setenv("XDG_CONFIG_HOME", str(folder))
    size = range(len(values))
    table = calibration() | {
        "machine": text, "values": values, "residual": residual,
        "covariance": [[float(i == j) for j in size] for i in size],
    }  # fmt: skip
    user.path("cpu").parent.mkdir(parents=True, exist_ok=True)
    user.path("cpu").write_text(user.to_toml(table), encoding="utf-8")
    assert user.read_whole("cpu") == table


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@quick
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=6, unique=True))
def test_points_of_annotations(folder, points):
    (folder / "a.png").write_bytes(b"")
    (folder / "annotations.jsonl").write_text(json.dumps({"image": "a.png", "points": points}))
    for split in ("train", "val", "test"):
        (folder / f"{split}.txt").write_text("a.png\n")
    data = Data.model_validate({"format": "points-jsonl", "root": folder})
    found = entries(data)["train"][0].photo({}).points
    assert found.shape == (len(points), 2)
    assert np.array_equal(found, np.array(points, np.float32).reshape(-1, 2))


@quick
@given(st.lists(NUMBER.filter(math.isfinite), min_size=1, max_size=5))
def test_labels_of_an_archive(folder, labels):
    pixels = np.zeros((len(labels), 4, 4), np.uint8)
    np.savez(folder / "a.npz", x=pixels, y=np.array(labels), allow_pickle=False)
    found, classes = photos(folder, "a.npz")
    assert [photo.label for photo in found] == labels
    assert classes is None


@quick
@given(st.integers(0, 2**31 - 1), st.integers(1, 10**6), st.floats(0.01, 1.0), NAME)
def test_spec(folder, seed, steps, width, text):
    from kdcompile.config.load import load_spec

    quoted = json.dumps(text, ensure_ascii=False)
    (folder / "kdcompile.toml").write_text(
        f'seed = {seed}\n[teacher]\nmodel = "model.py:build"\nweights = {quoted}\n[data]\n'
        'format = "points-jsonl"\n'
        f"root = {quoted}\n[student.budget]\nwidth = {width!r}\n[distill]\nsteps = {steps}\n"
    )
    spec = load_spec(folder / "kdcompile.toml")
    assert (spec.seed, spec.distill.steps, spec.student.budget.width) == (seed, steps, width)
    assert spec.data.root.name == spec.teacher.weights.name == text
    again = Spec.model_validate(json.loads(spec.model_dump_json()))
    assert again.model_dump() == spec.model_dump()
