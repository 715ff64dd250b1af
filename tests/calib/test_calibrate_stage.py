"""The calibrate stage on image files: its outputs, the choice of images, and sets it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from kdcompile import targets
from kdcompile.calib.table import CalibrationTable
from kdcompile.calib.trt_cache import read_cache
from kdcompile.config.load import load_spec
from kdcompile.config.step import Step
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.store import Artifact, Store, digest
from kdcompile.passes import calibrate as stage

SIZE = (16, 24)
SPEC = """
target = "jetson-orin-nano-8gb"
[teacher]
model = "model.py:build"
weights = "teacher.safetensors"
[data]
format = "points-jsonl"
root = "."
[export]
shape = [1, 3, 16, 24]
[quantize]
calibrator = "minmax"
images = 4
"""
PREPROCESS = {
    "channels": 3, "mean": [0.1] * 3, "std": [0.25] * 3, "min_hw": SIZE, "max_hw": SIZE,
}  # fmt: skip


def student() -> onnx.ModelProto:
    """Two convolutions and a density that grows with the image's brightness."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.random((8, 3, 3, 3)), "w2": rng.random((8, 8, 3, 3)) - 0.3}
    weights["w3"] = rng.random((1, 8, 1, 1)) / 100
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], "second", pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["density"], "output"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("image", TensorProto.FLOAT, [1, 3, *SIZE])],
        [value("density", TensorProto.FLOAT, [1, 1, *SIZE])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def picture(index: int) -> np.ndarray:
    """Noise, brighter from image to image."""
    rng = np.random.default_rng(index)
    return rng.integers(0, 30 + 20 * index, (*SIZE, 3), dtype=np.uint8)


Run = Callable[..., Artifact]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the stage with `--set` options on ten training images that `draw` makes."""

    def build(folder: Path) -> dict[str, int]:
        onnx.save(student(), folder / "student.onnx")
        write_json(folder / "preprocess.json", PREPROCESS)
        return {}

    def calibrate(
        *sets: str,
        draw: Callable[[int], np.ndarray] = picture,
        target: str = "jetson",
        judged: int = 2,
    ) -> Artifact:
        lines = []
        for split, indices in (
            ("train", range(10)),
            ("val", range(20, 20 + judged)),
            ("test", [40]),
        ):
            names = [f"{split}{i}.png" for i in indices]
            for name, i in zip(names, indices, strict=True):
                pixels = draw(i) if split == "train" else picture(i % 11)[::-1]
                Image.fromarray(pixels).save(tmp_path / name)
                lines.append(json.dumps({"image": name, "points": [[3, n] for n in range(i % 10)]}))
            (tmp_path / f"{split}.txt").write_text("\n".join(names))
        (tmp_path / "annotations.jsonl").write_text("\n".join(lines))
        (tmp_path / "kdcompile.toml").write_text(SPEC)
        spec = load_spec(tmp_path / "kdcompile.toml", sets)
        store = Store(tmp_path / ".kdcompile")
        exported = store.make("export", "e" * 64, build)
        sections = ("seed", "task", "data", "quantize", "export", "gates")
        step = Step("calibrate", digest([*sets, target]), spec.only(sections), {"export": exported})
        return stage.run(step, store, targets.load(target))

    return calibrate


def test_what_it_writes(run: Run) -> None:
    made = run()
    names = {"student_int8.onnx", "calibration.json", "calibration.cache", "audit.json"}
    names |= {"sensitivity.json"}  # the target may mix int8 and fp16
    assert set(made.files) == names
    table = CalibrationTable.read(made.file("calibration.json"))
    assert [name for name, _ in table.images] == [f"train{i}.png" for i in (0, 2, 5, 7)]
    assert table.counted_by in ("numpy", "triton")
    cache = read_cache(made.file("calibration.cache"), student(), table.onnx_sha256)
    assert set(cache.tensors) == set(table.tensors) == {"image", "r1"}
    assert cache.tensors["r1"].scale == pytest.approx(table.tensors["r1"].scale)
    record = made.json("audit.json")
    hashes = [image["sha256"] for image in record["images"]["images"]]
    assert hashes == [sha for _, sha in table.images]
    assert record["held_out"] == [f"train{i}.png" for i in (1, 3, 4, 6, 8, 9)]
    assert sum(part["chosen"] for part in record["strata"]) == made.meta["images"] == 4
    assert record["tensors"]["r1"]["saturation"] == 0.0
    assert record["tensors"]["r1"]["held_out_saturation"] > 0  # train9 is the brightest
    assert record["tensors"]["r1"]["scale_spread"] > 0
    assert made.meta["worst_drift"] > 0
    assert any("4 distinct images" in warning for warning in made.meta["warnings"])
    assert made.meta["select"] == "even"
    assert made.meta["sqnr_db"] > 15


def test_a_cache_brings_the_ranges(run: Run, tmp_path: Path) -> None:
    made = run()
    cache = tmp_path / "mine.cache"
    scale = "r1: 3f800000"  # 1.0
    kept = [x for x in made.file("calibration.cache").read_text().splitlines() if "r1" not in x]
    output = f"{student().graph.output[0].name}: 3f800000"  # TensorRT's own lists every tensor
    cache.write_text("\n".join([*kept, scale, output]))
    found = run(f"quantize.cache={cache}")
    table = CalibrationTable.read(found.file("calibration.json"))
    assert table.tensors["r1"].scale == 1.0
    audited = found.json("audit.json")["tensors"]
    assert set(audited) == {"image", "r1"}
    assert audited["r1"]["saturation"] == 0.0
    cache.write_text("\n".join([*kept, "r1: 38000000", output]))
    narrow = run(f"quantize.cache={cache}", "seed=1").json("audit.json")
    assert narrow["tensors"]["r1"]["saturation"] > 0.5  # which the cache does not say
    assert any("of r1 is clipped" in warning["message"] for warning in narrow["warnings"])
    assert table.cache_sha256
    pairs = {t.name: t for t in onnx.load(found.file("student_int8.onnx")).graph.initializer}
    assert any(numpy_helper.to_array(t).size == 1 and numpy_helper.to_array(t) == 1.0
               for t in pairs.values() if t.data_type == TensorProto.FLOAT)  # fmt: skip


def test_refinements_are_judged_on_validation_photos(run: Run) -> None:
    sets = 'quantize.refine=["equalise", "bias"]'
    with pytest.raises(KDError) as error:
        run(sets)
    assert error.value.code == "refine-few"
    made = run(sets, "quantize.images=9", judged=9)
    record = made.json("refine.json")
    assert [entry["name"] for entry in record] == ["equalise", "bias"]
    assert made.meta["refined"] == [entry["name"] for entry in record if entry["kept"]]
    assert "calibration_refined.json" in made.files


def chosen(made: Artifact) -> list[str]:
    return [image["name"] for image in made.json("audit.json")["images"]["images"]]


def test_the_choice_of_images(run: Run) -> None:
    """k-centre takes the image whose output is far from all others'."""

    def one_is_bright(i: int) -> np.ndarray:
        return picture(11 if i == 4 else i // 3)

    for seed in range(3):
        made = run(
            "quantize.select=pcoreset", "quantize.images=3", f"seed={seed}", draw=one_is_bright
        )
        assert "train4.png" in chosen(made)
    drawn = [chosen(run("quantize.select=random", f"seed={seed}")) for seed in range(4)]
    assert len({tuple(names) for names in drawn}) > 1
    assert all(len(names) == 4 for names in drawn)


@pytest.mark.parametrize(
    ("draw", "code"),
    [
        (lambda i: picture(3), "calib-duplicate"),
        (lambda i: np.full((*SIZE, 3), 9 + i, np.uint8), "calib-constant"),
    ],
)
def test_unusable_sets_are_refused(run: Run, draw: Callable[[int], np.ndarray], code: str) -> None:
    with pytest.raises(KDError) as error:
        run(draw=draw)
    assert error.value.code == code


def test_the_fix_for_one_image_many_times_works(run: Run) -> None:
    made = run("quantize.images=1", draw=lambda i: picture(3))
    assert made.meta["images"] == 1
    assert made.meta["worst_scale_spread"] is None
    assert made.json("audit.json")["held_out"] == []


def test_no_cache_where_none_is_read(run: Run) -> None:
    assert "calibration.cache" not in run(target="cpu").files


def test_fp8_is_written_where_it_may_be_chosen(run: Run) -> None:
    """So that the fix of `fp8-opset`, another precision, helps."""
    for asked, written in (("auto", True), ("fp8", True), ("fp16", False)):
        made = run(f"quantize.precision={asked}", target="jetson-thor-t5000")
        assert ("student_fp8.onnx" in made.files) == written
