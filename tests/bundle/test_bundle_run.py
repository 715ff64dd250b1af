"""Counting with a bundle: the runtime sample and `BundleRun` give the same numbers."""

import ast
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_bundle
from command_line import CommandLine, refusal
from documents import check_document
from PIL import Image

from kdcompile import api
from kdcompile.bundle import python_sample
from kdcompile.bundle.manifest import read_bundle
from kdcompile.bundle.run import BundleRun
from kdcompile.ci.stream import CI
from kdcompile.cli import main
from kdcompile.cli.run import MANY
from kdcompile.core.errors import KDError
from kdcompile.core.store import Store
from kdcompile.data.photo import read_pixels
from kdcompile.passes.bundle import install, run
from kdcompile.tasks.task import find_task

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def artifact(make_step, preprocess, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return run(make_step(store, preprocess), store, None)


@pytest.fixture
def bundle(artifact, tmp_path):
    return read_bundle(install(artifact, tmp_path / "out"))


@pytest.fixture
def photos(tmp_path):
    """Smaller than the network's input, larger, and larger in one direction only."""
    rng = np.random.default_rng(1)
    paths = []
    for folder, size in (("a", (20, 22, 3)), ("b", (150, 260, 3)), ("c", (30, 200, 3))):
        path = tmp_path / folder / "photo.png"
        path.parent.mkdir()
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def count_with(bundle, preprocess, photos, out=None):
    import onnxruntime

    session = onnxruntime.InferenceSession(bundle.model, providers=["CPUExecutionProvider"])
    return rows_of(photos, preprocess, lambda x: session.run(None, {"image": x})[0], out)


def rows_of(photos, preprocess, network, out=None):
    task = find_task("counting")
    return [row for _, row in BundleRun(task, None, preprocess, network, "fp32", photos, out)]


def infer(bundle, *arguments, cwd=None):
    return subprocess.run(
        [sys.executable, str(bundle.folder / "infer.py"), *map(str, arguments)],
        capture_output=True, text=True, timeout=600, check=False, cwd=cwd,
    )  # fmt: skip


def test_larger_photos_in_tiles(bundle, preprocess, photos):
    """Of the bundle as it was built, by the verb and by its sample."""
    scaled, tiled = (
        [row for _, row in api.run(bundle, photos, out=bundle.folder / "o", tiles=tiles)]
        for tiles in (False, True)
    )
    assert {row["tiles"] for row in scaled} == {None}
    assert [row["tiles"] is None for row in tiled] == [True, False, False]
    assert tiled[0]["count"] == scaled[0]["count"]
    assert tiled[1]["count"] != pytest.approx(scaled[1]["count"], rel=0.05)
    done = infer(bundle, "--tiles", *photos)
    assert done.returncode == 0, done.stderr
    told = [float(line.split("\t")[1]) for line in done.stdout.splitlines()]
    assert told == pytest.approx([row["count"] for row in tiled], abs=6e-4)


def test_a_bundle_before_there_were_tiles_is_refused(bundle, photos):
    del bundle.manifest["files"]["tiles.json"]
    with pytest.raises(KDError) as caught:
        list(api.run(bundle, photos, tiles=True))
    assert caught.value.code == "tiles-refused"
    (bundle.folder / "manifest.json").write_text(json.dumps(bundle.manifest))
    done = infer(bundle, "--tiles", *photos)
    assert (done.returncode, "has no tiles" in done.stderr) == (1, True)


def test_sample_counts_what_the_pipeline_counts(bundle, preprocess, photos):
    expected = [row["count"] for row in count_with(bundle, preprocess, photos)]
    done = infer(bundle, *photos)
    assert done.returncode == 0, done.stderr
    found = [line.split("\t") for line in done.stdout.splitlines()]
    assert [Path(path) for path, _ in found] == photos
    assert [float(count) for _, count in found] == pytest.approx(expected, abs=6e-4)
    assert len({count for _, count in found}) == 3


def test_overlays_are_written_without_one_replacing_another(bundle, preprocess, photos, tmp_path):
    rows = count_with(bundle, preprocess, photos, tmp_path / "overlays")
    assert [Path(row["overlay"]).name for row in rows] == [
        "photo_density.png", "photo-2_density.png", "photo-3_density.png"
    ]  # fmt: skip
    for row in rows:
        with Image.open(row["overlay"]) as image:
            assert image.width > 100
    assert count_with(bundle, preprocess, photos)[0]["overlay"] is None


def test_sample_refuses_a_changed_model_and_an_unknown_provider(bundle, photos):
    done = infer(bundle, photos[0], "--provider", "AbacusExecutionProvider")
    assert done.returncode == 1
    assert "AbacusExecutionProvider" in done.stderr
    bundle.model.write_bytes(bundle.model.read_bytes() + b"\0")
    done = infer(bundle, photos[0])
    assert done.returncode == 1
    assert "not the file of the manifest" in done.stderr


def test_sample_names_the_photo_it_cannot_read(bundle, tmp_path):
    done = infer(bundle, tmp_path / "absent.jpg")
    assert done.returncode == 1
    assert "absent.jpg" in done.stderr
    assert "Traceback" not in done.stderr


def test_sample_tells_each_bad_photo_and_runs_the_others(bundle, photos, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no image")
    (tmp_path / "cut.png").write_bytes(photos[0].read_bytes()[:-900])
    name = "::stop-commands::a\x1b[2J\u202e.png"
    (tmp_path / name).write_bytes(photos[0].read_bytes())
    done = infer(
        bundle, tmp_path / "torn.png", photos[0], tmp_path / "cut.png", tmp_path / "absent.png",
        name, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    first, second = done.stdout.splitlines()
    assert first.split("\t")[0] == str(photos[0])
    assert second.split("\t")[0] == "\\::stop-commands::a\\x1b[2J\\u202e.png"
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        ["error", str(tmp_path / f"{name}.png")] for name in ("torn", "cut", "absent")
    ]


@pytest.mark.parametrize(
    ("inputs", "value", "shape", "says"),
    [
        (("image", "second"), 1.0, (1, 1, 4, 6), "the network does not run: "),
        (("image",), np.nan, (1, 1, 4, 6), "photo.png: the network gives NaN or infinity"),
        (("image",), 1.0, (1, 7), "the network gives [1, 7], which is no counting"),
        (("image",), 1.0, (1, 2, 4, 6), "the network gives [1, 2, 4, 6]"),
    ],
)
def test_a_network_of_another_kind_is_one_error(
    command, bundle, photos, tmp_path, inputs, value, shape, says
):
    """In the sample and in `run`; the results of earlier images stay."""
    network = onnx.parser.parse_model(_MODEL)
    given = network.graph.input.pop()
    for name in inputs:
        given.name = name
        network.graph.input.append(given)
    constant = onnx.numpy_helper.from_array(np.full(shape, value, np.float32), "density")
    network.graph.initializer.append(constant)
    bundle.model.write_bytes(network.SerializeToString())
    tiny_bundle.resealed(bundle.folder)
    done = infer(bundle, photos[0])
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert (done.returncode, done.stdout) == (1, "")
    assert says in line
    assert "Traceback" not in done.stderr
    code, text = command("run", bundle.folder, photos[0], "-o", tmp_path / "drawn")
    assert (code, text.count("error[")) == (1, 1), text
    assert not (tmp_path / "drawn").exists()


_MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[N, K, H, W] image) => (float[A, B, C, D] out) {
    out = Identity(density)
}
"""


@pytest.mark.parametrize("task", ["generic", *python_sample.PARTS])
def test_sample_is_python_38_and_imports_nothing_of_kdcompile(task):
    source = python_sample.text(task)
    tree = ast.parse(source, feature_version=(3, 8))
    assert source.endswith('\n\n\nif __name__ == "__main__":\n    main()\n')
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(set(defined)) == len(defined)
    assert ("found_boxes" in defined, "class_map" in defined) == (
        task == "detection", task in ("segmentation", "counting"),
    )  # fmt: skip
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    third_party = imported - {*sys.stdlib_module_names}
    assert third_party == {"numpy", "onnxruntime", "PIL"}


def test_folder_that_cannot_be_written_is_named(bundle, preprocess, photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KDError) as caught:
        count_with(bundle, preprocess, photos[:1], tmp_path / "file")
    assert caught.value.code == "output-unwritable"


def test_no_overlay_replaces_an_input(bundle, preprocess, tmp_path):
    """Not the next photo, not one that is there by a link, and nothing through a link."""
    folder = tmp_path / "ph"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for name in ("a.png", "a_density.png", "elsewhere.png"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name)
    (folder / "a-2_density.png").symlink_to("elsewhere.png")
    (tmp_path / "private").write_text("mine")
    (folder / "elsewhere_density.png").symlink_to(tmp_path / "private")
    photos = [
        folder / name for name in ("a.png", "a_density.png", "a-2_density.png", "elsewhere.png")
    ]
    before = {photo: photo.read_bytes() for photo in photos}
    rows = count_with(bundle, preprocess, photos, folder)
    assert {photo: photo.read_bytes() for photo in photos} == before
    assert (folder / "a-2_density.png").is_symlink()
    assert (tmp_path / "private").read_text() == "mine"
    drawn = [Path(row["overlay"]).name for row in rows]
    assert drawn[0] == "a-3_density.png"
    assert drawn[3] == "elsewhere-2_density.png"
    assert (folder / "elsewhere_density.png").is_symlink()
    again = count_with(bundle, preprocess, photos, folder)  # an earlier run's are replaced
    assert again == rows
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_an_input_that_an_overlay_would_make_is_not_made(bundle, preprocess, photos, tmp_path):
    """An absent photo stays absent: it is not the overlay of the one before."""
    absent = tmp_path / "drawn" / "photo_density.png"
    first, second = count_with(bundle, preprocess, [photos[0], absent], tmp_path / "drawn")
    assert Path(first["overlay"]).name == "photo-2_density.png"
    assert isinstance(second, KDError)
    assert not absent.exists()


def test_a_photo_that_fails_is_its_own_error_and_the_others_go_on(preprocess, photos, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no image")
    os.mkfifo(tmp_path / "pipe.png")
    given = [photos[0], tmp_path / "torn.png", tmp_path / "pipe.png", Path("/dev/zero"), photos[1]]
    found = rows_of(given, preprocess, lambda image: np.ones((1, 1, 4, 6), np.float32))
    assert [isinstance(row, KDError) for row in found] == [False, True, True, True, False]
    for photo, error in zip(given[1:4], found[1:4], strict=True):
        assert (error.code, error.where) == ("image-unreadable", str(photo))
        assert "split" not in error.fix
    assert "regular file" in found[2].message


def test_nan_for_one_photo_is_its_error(preprocess, photos):
    answers = iter([1.0, np.nan, 1.0])
    found = rows_of(photos, preprocess, lambda _: np.full((1, 1, 4, 6), next(answers), np.float32))
    assert [getattr(row, "code", None) for row in found] == [None, "output-nonfinite", None]
    assert found[1].where == str(photos[1])


@pytest.mark.parametrize("shape", [(1, 7), (1, 2, 4, 6), (4, 6), (1, 1, 4, 6, 1)])
def test_an_output_of_another_shape_ends_the_run(preprocess, photos, shape):
    with pytest.raises(KDError) as caught:
        rows_of(photos, preprocess, lambda _: np.ones(shape, np.float32))
    assert caught.value.code == "output-shape"
    assert str(list(shape)) in caught.value.message


# ---- as a command


@pytest.fixture
def command(monkeypatch, capsys):
    return CommandLine(monkeypatch, capsys)


def test_one_bad_photo_is_one_line_and_the_others_are_counted(command, bundle, photos, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no image")
    given = [photos[0], tmp_path / "torn.png", photos[1]]
    code, error = command("run", bundle.folder, *given, "-o", tmp_path / "drawn")
    assert code == 1
    (line,) = error.splitlines()
    assert line.startswith(f"error[image-unreadable]: {tmp_path / 'torn.png'}: ")
    assert line.endswith("fix: give an image that can be decoded, or leave this one out")
    assert [row.split()[1] for row in command.out.splitlines()] == [str(p) for p in photos[:2]]
    code, error = command("run", bundle.folder, *given, "-o", tmp_path / "drawn", "--json")
    assert error.splitlines() == [line]
    rows = [json.loads(line) for line in command.out.splitlines()]
    for row in rows:
        check_document("run", row)
    assert code == 1
    assert [row["photo"] for row in rows] == [str(p) for p in given]
    assert ["count" in row for row in rows] == [True, False, True]
    assert rows[1]["error"]["code"] == "image-unreadable"
    assert command("run", bundle.folder, photos[0], "-o", tmp_path / "drawn") == (0, "")


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["lines", "json"])
def test_ctrl_c_keeps_what_was_counted(command, bundle, photos, tmp_path, monkeypatch, options):
    def interrupted(photo, channels):
        if photo == photos[1]:
            raise KeyboardInterrupt
        return read_pixels(photo, channels)

    monkeypatch.setattr("kdcompile.bundle.run.read_pixels", interrupted)
    code, told = command("run", bundle.folder, *photos, "-o", tmp_path / "drawn", *options)
    assert code == 130
    assert "1 of 3 images are done, and their results are printed" in told
    (line,) = command.out.splitlines()
    assert (json.loads(line)["photo"] if options else line.split()[1]) == str(photos[0])


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["lines", "json"])
@pytest.mark.parametrize("name", ["::stop-commands::x", "a\n::error::b", "a\x1b[2J\u202e##[x]"])
def test_a_name_is_text_on_its_line(command, bundle, photos, tmp_path, monkeypatch, name, options):
    for variable in CI:  # nothing else guards the streams
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    Path(f"{name}.png").write_bytes(photos[0].read_bytes())
    Path(f"{name}.jpg").write_bytes(b"no image")
    code, told = command("run", bundle.folder, f"{name}.png", f"{name}.jpg", *options)
    assert code == 1
    assert len(told.splitlines()) == 1
    assert len(command.out.splitlines()) == (2 if options else 1)
    for line in (command.out + told).splitlines():
        assert line.isprintable()
        assert not line.lstrip().startswith("::")
        assert "##[" not in line


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["lines", "json"])
def test_each_result_is_printed_before_the_next_image_is_read(
    command, bundle, photos, tmp_path, monkeypatch, options
):
    printed, out = [], io.StringIO()

    def watched(photo, channels):
        printed.append(len(out.getvalue().splitlines()))
        return read_pixels(photo, channels)

    monkeypatch.setattr("kdcompile.bundle.run.read_pixels", watched)
    with redirect_stdout(out):
        command("run", bundle.folder, *photos, "-o", tmp_path / "drawn", *options)
    assert printed == [0, 1, 2]


def test_what_ends_the_whole_run_is_one_error_and_no_document(
    command, bundle, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "kdcompile.tasks.builtin.Counting.check_output", lambda self, shape: "no map"
    )
    options = ("-o", tmp_path / "drawn", "--json")
    refusal(command("run", bundle.folder, *photos, *options), "output-shape", "no map", "build")
    assert command.out == ""


def test_many_photos_have_a_bar_and_a_file_has_the_results_alone(
    bundle, photos, tmp_path, monkeypatch
):
    """Standard error is a terminal, standard output a file."""
    terminal, file = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", file)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "200")):
        monkeypatch.setenv(name, value)
    many = [photos[0]] * MANY
    monkeypatch.setattr("sys.argv", ["kdcompile", "run", str(bundle.folder), *map(str, many),
                                     "-o", str(tmp_path / "drawn")])  # fmt: skip
    main()
    assert len(file.getvalue().splitlines()) == MANY
    assert f"{MANY} of {MANY} images" in terminal.getvalue()
    assert str(photos[0]) not in terminal.getvalue()
