"""`kdcompile bundle --test-pack` and `--merge` from the command line."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx_graphs import Graph

from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.cli import cli, main
from kdcompile.config.spec import Data, Export, Spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.core.store import Artifact
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import Splits, photos_digest
from kdcompile.passes.testpack import pack_build
from kdcompile.remote.agent.pack import Pack
from kdcompile.tasks.task import find_task

PREPROCESS = Preprocess(1, (0.4,), (0.3,), (8, 8), (16, 16))


class Work:
    """A finished build's plan, with the artifacts that a test pack takes."""

    def __init__(self, folder, tested, kit="kit/kit.json", preprocess=PREPROCESS):
        rows = [{"name": f"{i}.png", "true": i, "teacher": i} for i in (0, 2)]
        data = {"test": {"photos_sha256": photos_digest(tested)}}
        details = {"predictions": rows, "task": find_task("counting").facts(), "data": data}
        files = {
            "compile": {kit: "{}", "preprocess.json": json.dumps(preprocess.to_json())},
            "verify": {"report.json": json.dumps({"details": details})},
            "export": {
                "preprocess.json": json.dumps(preprocess.to_json()),
                "teacher.onnx": "32", "teacher_fp16.onnx": "16",
            },
        }  # fmt: skip
        for stage, named in files.items():
            for name, text in named.items():
                (folder / stage / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / stage / name).write_text(text)
        self.made = {
            stage: Artifact(stage, "", folder / stage, dict.fromkeys(named, ""), {})
            for stage, named in files.items()
        }
        data = Data.model_construct(max_test=2)
        self.spec = Spec.model_construct(seed=4, data=data, export=Export()).at(
            folder / "kdcompile.toml"
        )

    def pack(self, folder):
        return pack_build(folder, self.spec, self.made, "cpu")


@pytest.fixture
def photos(monkeypatch):
    rng = np.random.default_rng(0)
    made = [
        Photo(f"{i}.png", array=rng.integers(0, 256, (30, 20, 1), dtype=np.uint8)) for i in range(4)
    ]
    monkeypatch.setattr(
        "kdcompile.passes.testpack.load_splits", lambda *_: Splits([], [], made, []), raising=True
    )
    return made


def test_the_pack_holds_the_photos_that_verify_judged(tmp_path, photos):
    about = Work(tmp_path, photos).pack(tmp_path / "pack")
    assert (about["names"], about["true"]) == (["0.png", "2.png"], [0.0, 2.0])
    assert (about["seed"], about["available"], about["task"]) == (4, 4, "counting")
    assert (tmp_path / "pack/teacher_fp32.onnx").read_text() == "32"
    assert (tmp_path / "pack/teacher_fp16.onnx").read_text() == "16"
    with np.load(tmp_path / "pack/photos_000.npz") as arrays:
        kept = PREPROCESS(arrays["1"])
    assert kept.tobytes() == PREPROCESS(photos[2].pixels(1)).tobytes()


def test_the_teacher_in_the_pack_of_an_in_graph_build_takes_pixels(tmp_path, photos):
    """On the board it gives for a photo of the pack what the exported one gives here."""
    fixed = replace(PREPROCESS, min_hw=(16, 16))  # so that the mean colour, 102 of 255, pads
    work = Work(tmp_path, photos, preprocess=fixed)
    export, compiled = (work.made[stage].path for stage in ("export", "compile"))
    graph = Graph()
    onnx.save(graph.model(graph.conv("out", "image", 1, 1), channels=1), export / "teacher.onnx")
    shutil.copyfile(export / "teacher.onnx", export / "teacher_fp16.onnx")
    work.spec = work.spec.model_copy(update={"export": Export(preprocess="in-graph")})
    deployed = fixed.deployed("in-graph").to_json()
    (compiled / "preprocess.json").write_text(json.dumps(deployed))
    work.pack(tmp_path / "pack")
    kit = {
        "task": "counting", "output": find_task("counting").facts()["output"],
        "files": {"preprocess.json": file_sha256(compiled / "preprocess.json")},
    }  # fmt: skip
    pack = Pack(str(tmp_path / "pack"), kit)
    there = open_session(tmp_path / "pack" / pack.onnx("fp32").rsplit("/", 1)[1])
    here = open_session(export / "teacher.onnx")
    samples = list(pack.photos(deployed))
    assert [(s.given.dtype, s.given.shape) for s in samples] == [(np.uint8, (1, 16, 16, 1))] * 2
    for sample, photo in zip(samples, photos[::2], strict=True):
        exported = here(fixed(photo.pixels(1)))
        np.testing.assert_allclose(there(sample.given), exported, rtol=1e-4, atol=1e-5)


def test_a_target_without_a_kit_takes_no_pack(tmp_path, photos):
    with pytest.raises(KDError) as caught:
        Work(tmp_path, photos, kit="model.onnx").pack(tmp_path / "pack")
    assert caught.value.code == "kit-missing"
    assert "--target jetson" in caught.value.fix


@pytest.mark.parametrize(
    "change", [list.reverse, lambda photos: photos[1].array.fill(0)], ids=["order", "content"]
)
def test_another_test_split_is_refused(tmp_path, photos, change):
    work = Work(tmp_path, photos)
    photos[:] = [replace(photo, array=photo.array.copy()) for photo in photos]
    change(photos)
    with pytest.raises(KDError) as caught:
        work.pack(tmp_path / "pack")
    assert caught.value.code == "pack-photos"
    assert not (tmp_path / "pack").exists()


def test_merge_takes_no_option_of_a_build(tmp_path):
    for options in (["--target", "jetson"], ["--force"], ["-o", "x"]):
        found = CliRunner().invoke(cli, ["bundle", "--merge", "device.json", *options])
        assert found.exit_code == 2
        assert "--merge takes" in found.output
    found = CliRunner().invoke(cli, ["bundle", "--engine", "e.plan"])
    assert (found.exit_code, "--engine needs --merge" in found.output) == (2, True)


def test_merging_into_no_bundle_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "device.json").write_text("{}")
    command = ["kdcompile", "bundle", "--merge", str(tmp_path / "device.json"), str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert "error[bundle-missing]" in capsys.readouterr().err


def test_help_names_the_way_home():
    shown = CliRunner().invoke(cli, ["bundle", "--help"]).output
    assert all(option in shown for option in ("--test-pack", "--merge", "--engine", "--via"))
