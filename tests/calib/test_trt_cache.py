"""TensorRT's calibration cache: round trips, and caches that are refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from kdcompile.calib.qdq import insert_qdq
from kdcompile.calib.table import CalibrationTable, tensor_range
from kdcompile.calib.trt_cache import cache_version, first_line, read_cache, write_cache
from kdcompile.core.errors import KDError


def chain(*names: str) -> ModelProto:
    """1x1 convolutions one after the other; the first name is the input."""
    value = helper.make_tensor_value_info
    outputs = [*names[1:], "density"]
    nodes = [
        helper.make_node("Conv", [given, f"weight {i}"], [made])
        for i, (given, made) in enumerate(zip(names, outputs, strict=True))
    ]
    weights = [
        numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), f"weight {i}")
        for i in range(len(nodes))
    ]
    shape = [1, 1, 4, 4]
    ends = [[value(name, TensorProto.FLOAT, shape)] for name in (names[0], "density")]
    graph = helper.make_graph(nodes, "g", *ends, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def table(**amax: float) -> CalibrationTable:
    ranges = {name: tensor_range(value, 0.0, -value, value) for name, value in amax.items()}
    return CalibrationTable("entropy", "f" * 64, (("a", "b"),), ranges)


NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1, max_size=12
)
SCALES = st.floats(2.0**-120, 2.0**100, width=32)


@given(st.dictionaries(NAMES, SCALES, min_size=3, max_size=6))
@settings(max_examples=80)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, scales: dict[str, float]) -> None:
    path = tmp_path_factory.mktemp("cache") / "calibration.cache"
    names = [name for name in scales if name not in {"density", "weight 0", "weight 1"}]
    model = chain(*names)
    write_cache(table(**{name: scales[name] * 127 for name in names}), path, "8.6.1")
    found = read_cache(path, model, "f" * 64)
    assert {name: entry.scale for name, entry in found.tensors.items()} == {
        name: scales[name] for name in names
    }
    assert found.onnx_sha256 == "f" * 64
    write_cache(found, path.with_name("again"), "8.6.1")
    assert path.with_name("again").read_bytes() == path.read_bytes()


def test_the_text_is_tensorrts(tmp_path: Path) -> None:
    write_cache(table(image=1.0, inner=2.0), tmp_path / "c", "8.6.1")
    assert (tmp_path / "c").read_text() == (
        "TRT-8601-EntropyCalibration2\nimage: 3c010204\ninner: 3c810204\n"
    )


def test_a_cache_that_tensorrt_wrote(tmp_path: Path) -> None:
    """Tensors of its own parser, a name with a colon, no leading zeros, a dead tensor."""
    path = tmp_path / "c"
    path.write_text(
        "TRT-7000-MinMaxCalibration\r\nin: 0: 3c008912\r\ninner: 0\r\n"
        "(Unnamed Layer* 4) [Shuffle]_output: 3d000000\r\ndensity: 3c010a14\r\n"
    )
    model = chain("in: 0", "inner")
    found = read_cache(path, model)
    assert found.calibrator == "MinMaxCalibration"
    assert set(found.tensors) == {"in: 0", "inner", "density"}
    assert found.tensors["in: 0"].scale == pytest.approx(0.00784518, rel=1e-6)
    assert (found.tensors["inner"].amax, found.tensors["inner"].scale) == (0.0, 1.0)
    onnx.checker.check_model(insert_qdq(model, found), full_check=True)
    found.write(tmp_path / "t.json")
    assert CalibrationTable.read(tmp_path / "t.json") == found


def refusal(path: Path, model: ModelProto) -> KDError:
    with pytest.raises(KDError) as error:
        read_cache(path, model)
    assert error.value.where == str(path)
    return error.value


def test_a_cache_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.cache"
    write_cache(table(image=1.0, p1=1.0, p2=1.0, p3=1.0, p4=1.0), path, "8.6.1")
    error = refusal(path, chain("image", "inner", "last"))
    assert error.code == "calib-cache-model"
    assert "has no tensor p1, p2, p3 and 1 more" in error.message
    write_cache(table(image=1.0), path, "8.6.1")
    error = refusal(path, chain("image", "inner", "last"))
    assert error.code == "calib-cache-model"
    assert "no scale for inner" in error.message


def test_the_fix_for_another_networks_cache_works(tmp_path: Path) -> None:
    """Calibrating this network gives a cache that is read."""
    from kdcompile.calib.calibrate import calibrate

    model, path = chain("image", "inner", "last"), tmp_path / "calibration.cache"
    image = np.random.default_rng(0).standard_normal((1, 1, 4, 4)).astype(np.float32)
    found = calibrate(model, "f" * 64, [image], [("a", "b")], "minmax")
    write_cache(found, path, "8.5.2")
    again = read_cache(path, model)
    for name, entry in found.tensors.items():
        assert again.tensors[name].scale == pytest.approx(entry.scale, rel=1e-7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "image: 3c010a14\n",
        "TRT-8601-EntropyCalibration2\nimage 3c010a14\n",
        "TRT-8601-EntropyCalibration2\nimage: 3c010a1g\n",
        "TRT-8601-EntropyCalibration2\nimage: 3c010a14f\n",
        "TRT-8601-EntropyCalibration2\nimage: 7f800000\n",
        "TRT-8601-EntropyCalibration2\nimage: 7fc00000\n",
        "TRT-8601-EntropyCalibration2\nimage: bc010a14\n",
    ],
)
def test_what_is_no_cache_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c"
    path.write_text(text)
    error = refusal(path, chain("image", "inner"))
    assert error.code == "calib-cache-format"
    path.write_text(error.fix.split("such as ")[1].split(",")[0] + "\nimage: 3c010a14\n")
    assert "image" in read_cache(path, chain("image", "inner")).tensors


def test_bytes_and_absent_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"\xff\xfe\x00")
    for name in ("c", "absent"):
        assert refusal(tmp_path / name, chain("image", "inner")).code == "calib-cache-format"


def test_a_name_that_fits_no_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KDError) as error:
        write_cache(table(**{"a\nb": 1.0}), tmp_path / "c", "8.6.1")
    assert error.value.code == "calib-cache-format"
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("version", "number"),
    [("8.6.1", 8601), ("8.5.2", 8502), ("8.6", 8600), ("10.3", 100300), ("10.13.3.9", 101303)],
)
def test_first_line(version: str, number: int) -> None:
    assert first_line(version) == f"TRT-{number}-EntropyCalibration2"


@pytest.mark.parametrize(
    ("tensorrt", "version"),
    [("8.5.2", "8.5.2"), ("8.6..11.99", "8.6"), ("10.3", "10.3"), ("11.4.1", None), (None, None)],
)
def test_only_where_calibrators_are(tensorrt: str | None, version: str | None) -> None:
    assert cache_version(tensorrt) == version
