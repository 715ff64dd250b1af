"""Photos that are larger than the network's input, in tiles: the map is that of the whole photo."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.bundle import python_sample
from kdcompile.bundle.product import write_tiles
from kdcompile.bundle.run import BundleRun
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.data import tiles
from kdcompile.data.photo import read_pixels
from kdcompile.data.preprocess import Preprocess
from kdcompile.onnx_graph.in_graph import in_graph
from kdcompile.onnx_graph.receptive import tiling
from kdcompile.tasks.task import find_task

TILE = (48, 64)
TOLERANCE = 1e-5  # of the largest cell: sums are added up in another order
SIZES = {"large": (130, 170), "odd": (101, 77), "wide": (20, 201), "high": (150, 30)}
FIXED = Preprocess(1, (0.4,), (0.3,), TILE, TILE, "mirror")


class Builder:
    """An ONNX graph of random weights, of inputs of any size."""

    def __init__(self):
        self.nodes, self.weights, self.last, self.channels = [], [], "image", 1
        self.rng = np.random.default_rng(0)

    def _add(self, kind, more=(), **attributes):
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *more], [name], **attributes))
        self.last = name
        return self

    def constant(self, value):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def conv(self, channels=4, kernel=3, dilation=1, stride=1):
        shape = (channels, self.channels, kernel, kernel)
        weight = self.constant(self.rng.normal(0.1, 0.3, shape).astype(np.float32))
        self.channels = channels
        pad = (kernel - 1) * dilation // 2
        return self._add("Conv", [weight], kernel_shape=[kernel] * 2, pads=[pad] * 4,
                         dilations=[dilation] * 2, strides=[stride] * 2)  # fmt: skip

    def up(self):
        scales = self.constant(np.float32([1, 1, 2, 2]))
        return self._add("Resize", ["", scales], mode="linear")

    def transposed(self):
        weight = self.rng.normal(0.1, 0.3, (self.channels, self.channels, 4, 4))
        return self._add("ConvTranspose", [self.constant(weight.astype(np.float32))],
                         kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4)  # fmt: skip

    def pool(self, kind="MaxPool"):
        return self._add(kind, kernel_shape=[2, 2], strides=[2, 2])

    def relu(self):
        return self._add("Relu")

    def model(self):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes, "map",
            [value("image", TensorProto.FLOAT, [1, 1, "h", "w"])],
            [value(self.last, TensorProto.FLOAT, None)], self.weights,
        )  # fmt: skip
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)


NETWORKS = {
    "pooled": lambda: Builder().conv().relu().pool().conv().relu().pool().conv(1),
    "dilated": lambda: Builder().conv().pool().conv(dilation=2).relu().conv(1, dilation=2),
    "strided": lambda: Builder().conv(stride=2).relu().conv(stride=2, kernel=5).conv(1, kernel=1),
    "upsampled": lambda: Builder().conv().pool("AveragePool").conv().pool().relu().up().conv(1),
    "transposed": lambda: Builder().conv().pool().pool().relu().transposed().conv(1),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory):
    """(session, what a bundle says of its tiles, the file)."""
    model = NETWORKS[request.param]().model()
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    onnx.save(model, path)
    return open_session(path), tiling(model), path


def image_of(height, width):
    return np.random.default_rng(1).normal(size=(1, 1, height, width)).astype(np.float32)


def whole_of(session, image, plane):
    pad = [(0, 0), (0, 0), *((0, plane[i] - image.shape[2 + i]) for i in (0, 1))]
    return session(np.pad(image, pad, mode="symmetric"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_map_is_that_of_the_whole_photo(network, size):
    session, about, _ = network
    seen = []

    def runner(part):
        seen.append(part.shape)
        return session(part)

    image = image_of(*size)
    found, plane, count = tiles.run(runner, image, TILE, about)
    assert set(seen) == {(1, 1, *TILE)}
    assert len(seen) == count > 1
    wanted = whole_of(session, image, plane)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    assert all(plane[i] >= size[i] for i in (0, 1))


def test_a_network_that_normalises_takes_tiles_of_pixels(tmp_path):
    model = in_graph(NETWORKS["dilated"]().model(), FIXED.mean, FIXED.std)
    onnx.save(model, tmp_path / "model.onnx")
    session, about = open_session(tmp_path / "model.onnx"), tiling(model)
    assert about == tiling(NETWORKS["dilated"]().model())
    pixels = np.random.default_rng(2).integers(0, 256, (1, 101, 77, 1), np.uint8)
    found, plane, count = tiles.run(session, pixels, TILE, about)
    pad = [(0, 0), (0, plane[0] - 101), (0, plane[1] - 77), (0, 0)]
    wanted = session(np.pad(pixels, pad, mode="symmetric"))
    assert count > 2
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE * np.abs(wanted).max())


def test_without_the_margin_it_is_another_map(network):
    session, about, _ = network
    image = image_of(*SIZES["large"])
    found, plane, _ = tiles.run(session, image, TILE, about | {"margin": 0})
    wanted = whole_of(session, image, plane)
    assert np.abs(found - wanted).max() > 100 * TOLERANCE * np.abs(wanted).max()


def test_the_margin_holds_the_reach_and_is_not_much_wider(network):
    """By moving one pixel: which cells of a map notice it."""
    session, about, _ = network
    image = image_of(128, 128)
    base, reach = session(image), 0
    for at in range(56, 72):  # every place within a cell, and within a period
        changed = image.copy()
        changed[0, 0, at, at] += 50.0
        noticed = np.flatnonzero((session(changed) != base).any(axis=(0, 1, 3)))
        first, last = int(noticed.min()), int(noticed.max())
        cell = about["cell"]  # the pixel lies so far beyond the areas of the outermost cells
        reach = max(reach, at - (first + 1) * cell + 1, last * cell - at)
    assert reach <= about["margin"]
    assert about["margin"] <= reach + 3 * about["period"]


def test_strides_of_other_factors_have_their_multiple_as_period():
    """A stride of 4 doubled once has period 4 and cells of 2; a stride of 3 makes cells of 6."""
    about = tiling(Builder().conv(stride=4).up().conv(1, stride=3).model())
    assert (about["cell"], about["period"]) == (6, 12)


def test_a_photo_of_one_tile_is_one_tile(network):
    session, about, _ = network
    found, plane, count = tiles.run(session, image_of(30, 40), TILE, about)
    assert (plane, count) == (TILE, 1)
    assert found.tobytes() == whole_of(session, image_of(30, 40), TILE).tobytes()


@pytest.mark.parametrize(
    ("whole", "tile", "margin", "wanted"),
    [(64, 64, 8, [0]), (65, 64, 8, [0, 1]), (112, 64, 8, [0, 48]), (113, 64, 8, [0, 48, 49]),
     (64, 64, 0, [0]), (128, 64, 0, [0, 64])],
)  # fmt: skip
def test_where_tiles_begin(whole, tile, margin, wanted):
    assert tiles.starts(whole, tile, margin) == wanted


@pytest.mark.parametrize(("side", "fits"), [(17, False), (20, True), (16, False), (24, True)])
def test_a_tile_has_more_than_its_margins_and_whole_periods(side, fits):
    about = {"cell": 4, "margin": 7, "period": 4}
    if fits:
        assert tiles.checked(about, (side, 24)) == (4, 8, 4)
        return
    with pytest.raises(tiles.TilesError, match="too small"):
        tiles.checked(about, (side, 24))


def everywhere_unlike():
    pooled = Builder().conv()
    pooled._add("GlobalAveragePool")
    at_places = Builder().conv()
    at_places._add("Add", [at_places.constant(np.zeros((1, 1, 48, 64), np.float32))])
    sized = Builder().conv()
    sized._add("Resize", ["", "", sized.constant(np.int64([1, 4, 48, 64]))], mode="nearest")
    small = Builder().up().conv(1)
    padded = Builder().conv()
    padded._add("AveragePool", kernel_shape=[3, 3], auto_pad="SAME_UPPER")
    return {"whole": pooled, "places": at_places, "sized": sized, "small": small, "auto": padded}


@pytest.mark.parametrize("name", everywhere_unlike())
def test_a_network_that_is_not_the_same_everywhere_has_none(name):
    about = tiling(everywhere_unlike()[name].model())
    assert set(about) == {"refused"}
    with pytest.raises(tiles.TilesError, match="cannot be run in tiles"):
        tiles.checked(about, TILE)


def test_a_map_of_another_size_is_refused():
    about = {"cell": 4, "margin": 4, "period": 4}
    with pytest.raises(tiles.TilesError, match="cells"):
        tiles.run(lambda part: part[:, :, ::8, ::8], image_of(90, 90), TILE, about)


# ---- `run` and the sample


def load(path):
    spec = importlib.util.spec_from_file_location(f"_of_tiles_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A counting network of fixed size and the sample's files, without the rest of a bundle."""
    folder = tmp_path_factory.mktemp("bundle")
    model = NETWORKS["pooled"]().model()
    onnx.save(model, folder / "model.onnx")
    (folder / "preprocess.json").write_text(json.dumps(FIXED.to_json()))
    write_tiles(folder)
    (folder / "infer.py").write_text(python_sample.text("counting"))
    files = {p.name: {"sha256": file_sha256(p)} for p in folder.iterdir() if p.name != "infer.py"}
    manifest = {"task": "counting", "classes": None, "files": files, "preprocess":
                "preprocess.json", "model": "model.onnx", "engine": None}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def photos(tmp_path):
    """Larger and odd ones, and one that is padded."""
    made = []
    for name, size in {**SIZES, "small": (30, 40)}.items():
        pixels = np.random.default_rng(4).integers(0, 256, size, np.uint8)
        made.append(tmp_path / f"{name}.png")
        Image.fromarray(pixels).save(made[-1])
    return made


def rows_of(bundle, photos, about, preprocess=FIXED):
    session = open_session(bundle / "model.onnx")
    run = BundleRun(find_task("counting"), None, preprocess, session, "fp32", photos, None, about)
    return [row for _, row in run]


def test_run_and_the_sample_count_what_the_whole_photo_has(bundle, photos):
    about = json.loads((bundle / "tiles.json").read_text())
    free = Preprocess(1, FIXED.mean, FIXED.std, (1, 1), (400, 400), "mirror")
    rows = rows_of(bundle, photos, about)
    assert [row["tiles"] is not None for row in rows] == [True] * 4 + [False]
    done = subprocess.run(
        [sys.executable, bundle / "infer.py", "--tiles", *photos],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [float(line.split("\t")[1]) for line in done.stdout.splitlines()]
    assert told == pytest.approx([row["count"] for row in rows], rel=1e-5, abs=1e-3)
    # in the middle of a whole photo nothing of its border or of the tiles is seen
    session, pixels = open_session(bundle / "model.onnx"), read_pixels(photos[0], 1)
    plane = tuple(tiles.up(side, about["period"]) for side in pixels.shape[:2])
    whole = whole_of(session, free(pixels), plane)
    frame = Preprocess(1, FIXED.mean, FIXED.std, plane, (400, 400)).frame(*pixels.shape[:2])
    counted = find_task("counting").within(whole, frame).sum(dtype=np.float64)
    assert rows[0]["count"] == pytest.approx(counted, rel=1e-5)


def test_without_the_option_a_larger_photo_is_scaled_down(bundle, photos):
    rows = rows_of(bundle, photos, None)
    assert {row["tiles"] for row in rows} == {None}
    with_tiles = rows_of(bundle, photos, json.loads((bundle / "tiles.json").read_text()))
    assert rows[-1]["count"] == with_tiles[-1]["count"]
    assert rows[0]["count"] != pytest.approx(with_tiles[0]["count"], rel=0.1)


def test_a_photo_on_its_side_is_as_large_as_it_is_upright(bundle, tmp_path):
    sample = load(bundle / "infer.py")
    image, exif = Image.new("L", (64, 48)), Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "upright.png")
    image.save(tmp_path / "side.png", exif=exif)
    constants = FIXED.to_json()
    assert not sample.is_larger(str(tmp_path / "upright.png"), constants)
    assert sample.is_larger(str(tmp_path / "side.png"), constants)  # 64 rows, of 48 that fit
    assert not sample.is_larger(str(tmp_path / "absent.png"), constants)


def test_what_has_no_tiles_says_so(bundle, photos):
    with pytest.raises(KDError) as caught:
        rows_of(bundle, photos, {"refused": "Gemm may look at the whole input"})
    assert caught.value.code == "tiles-refused"
    assert "Gemm" in caught.value.message
    assert "--tiles" in caught.value.fix
