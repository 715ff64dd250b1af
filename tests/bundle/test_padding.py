"""What a density says of the padding is not counted, and everybody means the same padding by it.

Networks of one convolution with large biases see people in flat areas: a count that takes the
padding in is wrong by far, and each test here fails without the mask.
"""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from kdcompile.backends.candidate_runner import predict_outputs
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.bundle import python_sample
from kdcompile.bundle.run import BundleRun
from kdcompile.calib.keep_if_better import against
from kdcompile.calib.sensitivity import photo_evaluator
from kdcompile.core.user_code import load_factory
from kdcompile.data.photo import Photo, read_pixels
from kdcompile.data.preprocess import Preprocess
from kdcompile.distill.evaluate import predict
from kdcompile.gates.evaluate import evaluate, example_arrays
from kdcompile.models.csrnet import build as csrnet
from kdcompile.models.weights import read_weights
from kdcompile.remote.agent import pack
from kdcompile.tasks.metric import MAE
from kdcompile.tasks.task import find_task

COUNTING = find_task("counting")
FIXED = Preprocess(3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (32, 48), (32, 48), "mirror")
FREE = Preprocess(3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (32, 48), (64, 96), "mirror")
FLAT = Preprocess(1, (0.4,), (0.3,), (32, 48), (32, 48))
# smaller, larger, larger in one dimension and then padded in the other, a single row, as it is
SIZES = [(17, 23), (70, 90), (100, 20), (20, 100), (1, 9), (32, 48), (33, 50)]
EXAMPLES = Path(__file__).parents[2] / "examples"


def script(path):
    """A file of the samples, alone."""
    spec = importlib.util.spec_from_file_location(f"_alone_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def infer(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "infer.py"
    path.write_text(python_sample.text("counting"))
    return script(path)


@pytest.mark.parametrize("preprocess", [FIXED, FREE, FLAT], ids=["fixed", "free", "mean"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_samples_and_the_kit_mean_the_same(infer, tmp_path, preprocess, size):
    """The C++ sample is held against the same definition in test_cpp.py."""
    path, channels = tmp_path / "photo.png", preprocess.channels
    shape = size if channels == 1 else (*size, channels)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(path)
    pixels, constants = read_pixels(path, channels), preprocess.to_json()
    wanted, frame = preprocess(pixels), preprocess.frame(*size)
    assert wanted.shape[2:] == frame.plane
    photo, scaled = infer.prepare(str(path), constants), preprocess.scaled(pixels)
    assert photo.shape[2:] == scaled.shape[:2] == frame.seen
    assert infer.padded(photo, constants).tobytes() == wanted.tobytes()
    assert pack.prepare(scaled, constants).tobytes() == wanted.tobytes()
    for cells in (wanted.shape[2:], tuple(-(-side // 8) for side in frame.plane), (3, 7)):
        density = np.random.default_rng(1).normal(size=(1, 1, *cells)).astype(np.float32)
        mine = COUNTING.within(density, frame)
        for theirs in (infer.within, pack.within):
            found = theirs(density, frame.seen, frame.plane)
            assert found.dtype == np.float32
            assert found.tobytes() == mine.tobytes()
    assert frame.inside(*frame.plane).sum() == np.prod(frame.seen)


def test_a_cell_across_the_border_counts_by_its_area():
    inside = FIXED.frame(20, 36).inside(4, 6)  # cells of 8 x 8, 2.5 x 4.5 of them the photo's
    assert inside[:, 0].tolist() == [1, 1, 0.5, 0]
    assert inside[0].tolist() == [1, 1, 1, 1, 0.5, 0]
    assert inside[2, 4] == 0.25


def test_a_photo_that_fills_the_input_keeps_its_whole_output():
    """For every size: no rounding may take a grain from its last cells."""
    for side in range(1, 400):
        cells = -(-side // 8)
        assert (Preprocess(1, (0,), (1,), (1, 1), (400, 400)).frame(side, side).inside(
            cells, cells) == 1).all()  # fmt: skip


def test_old_bundles_are_padded_with_the_mean_and_counts_are_not_of_their_padding(infer):
    values = FLAT.to_json()
    del values["padding"]
    assert Preprocess.from_json(values) == FLAT
    image = np.ones((1, 1, 20, 30), np.float32)
    assert infer.padded(image, values).sum() == 600
    assert infer.padded(image, values | {"padding": "mirror"}).sum() == 32 * 48
    mirrored = infer.predict(lambda whole: whole, image, {"task": "counting"}, values)
    assert mirrored.sum() == 600


def test_a_label_is_of_the_whole_input():
    """Only maps have cells; mirrored, a class would be seen twice."""
    logits = np.ones((1, 4))
    assert find_task("classification").within(logits, FLAT.frame(2, 2)) is logits


# ---- every number that a build makes


class Crowd(nn.Module):
    """Sees 2 people in each cell of 8 x 8 of whatever is flat, and more where it is bright."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Conv2d(4, 1, 1)
        )
        for layer in (self.layers[0], self.layers[3]):
            nn.init.constant_(layer.bias, 2.0)

    def forward(self, image):
        return self.layers(image)


@pytest.fixture(scope="module")
def crowd():
    return Crowd().eval()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """`Crowd`'s like as a file: 2 people in each cell, and more where it is bright."""
    weight = numpy_helper.from_array(np.full((1, 1, 8, 8), 0.01, np.float32), "w")
    bias = numpy_helper.from_array(np.float32([2]), "b")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w", "b"], ["density"], strides=[8, 8])],
        "crowd",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, "h", "w"])],
        [helper.make_tensor_value_info("density", TensorProto.FLOAT, [1, 1, None, None])],
        [weight, bias],
    )
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path_factory.mktemp("crowd") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """16 x 24 pixels under 32 x 48: 6 cells are the photo's, 18 the padding's."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (16, 24), np.uint8)).save(path)
    return path


def unpadded(runner, path):
    """The count of the photo at its own size, and the one that takes the padding in."""
    alone = Preprocess(1, FLAT.mean, FLAT.std, (1, 1), (32, 48))
    pixels = read_pixels(path, 1)
    own, whole = (float(runner(prepare(pixels)).sum()) for prepare in (alone, FLAT))
    assert whole > own + 10, "else the tests below could not fail"
    return own


@pytest.mark.parametrize("padding", ["mean", "mirror"])
def test_validation_and_teacher_stage(crowd, photo, padding):
    preprocess = Preprocess(1, FLAT.mean, FLAT.std, (32, 48), (32, 48), padding)

    def runner(image):
        with torch.no_grad():
            return crowd(torch.from_numpy(image)).numpy()

    photos = [Photo("a", path=photo), Photo("b", array=np.zeros((32, 48, 1), np.uint8))] * 2
    found = predict(crowd, photos, preprocess, torch.device("cpu"), COUNTING)
    own = unpadded(runner, photo)
    assert found[::2] == pytest.approx([own] * 2, abs=0.5)
    assert found[1] == pytest.approx(float(runner(preprocess(np.zeros((32, 48, 1)))).sum()))


def test_gates_and_the_reports_examples(network, photo):
    session, one = open_session(network), Photo("a", path=photo)
    own = unpadded(session, photo)
    runners = dict.fromkeys(("student_fp32", "student", "previous"), session)
    older = {"previous": FLAT}
    mirrored = Preprocess(1, FLAT.mean, FLAT.std, (32, 48), (32, 48), "mirror")
    pair = ("student_fp32", "student")
    found = evaluate(runners, pair, [one], mirrored, COUNTING, own=older)
    assert found.predicted["student"] == pytest.approx([own], abs=1e-4)
    assert found.predicted["previous"] == pytest.approx([own], abs=1e-4)
    assert found.difficulty == pytest.approx([own], abs=1e-4)
    assert (found.maps["student"] <= own + 1e-4).all()  # GAME: no point is annotated
    drawn = example_arrays(one, mirrored, {"student": session}, COUNTING)
    assert drawn["student"].sum() == pytest.approx(own, abs=1e-4)
    assert (drawn["student"][2:] == 0).all()
    assert (drawn["student"][:, 3:] == 0).all()
    assert len(np.unique(drawn["pixels"][16:])) == 1  # the mean colour, not a mirrored crowd


def test_precision_choice_and_calibration(network, photo):
    session, one, model = open_session(network), Photo("a", path=photo), onnx.load(network)
    own = unpadded(session, photo)
    (output,), (frame,) = predict_outputs(session, [one], FLAT)
    assert COUNTING.within(output, frame).sum() == pytest.approx(own, abs=1e-4)
    assert photo_evaluator(model, [one], FLAT, COUNTING, MAE)(model).metric == pytest.approx(own)
    images = [FLAT(read_pixels(photo, 1))]
    judge = against(model, images, COUNTING, [0.0], MAE, [frame])
    assert judge(model).errors == pytest.approx([own])


def test_run_and_the_sample(infer, network, photo):
    session = open_session(network)
    own = unpadded(session, photo)
    ((_, row),) = BundleRun(COUNTING, None, FLAT, session, "fp32", [photo])
    assert row["count"] == pytest.approx(own, abs=1e-4)
    constants, manifest = FLAT.to_json(), {"task": "counting"}

    def by_name(given):
        return {"density": session(given["image"])}

    found = infer.predict(by_name, infer.prepare(str(photo), constants), manifest, constants)
    assert float(infer.meaning(found, manifest)) == pytest.approx(own, abs=1e-3)


# ---- trained networks


def test_the_digits_teacher_on_a_part_of_a_canvas():
    """Of 40 x 44 pixels: it counts there what it counts without padding."""
    folder = EXAMPLES / "digits"
    teacher = load_factory("model.py:build", folder)()
    weights, _ = read_weights(folder / "teacher.safetensors")
    teacher.load_state_dict(weights)
    preprocess = Preprocess(1, (0.09,), (0.155,), (64, 64), (64, 64), "mirror")
    alone = Preprocess(1, (0.09,), (0.155,), (1, 1), (64, 64))
    photos = [
        Photo(photo.name, array=np.ascontiguousarray(photo.array[:40, :44]))
        for photo in load_factory("canvases.py:photos", folder)(folder, "val:16")
    ]
    cpu = torch.device("cpu")
    found, wanted = (
        np.array(predict(teacher.eval(), photos, how, cpu, COUNTING)) for how in (preprocess, alone)
    )
    assert np.abs(found - wanted).mean() < 0.5


def test_csrnet_on_a_crop_with_one_head(shanghaitech, csrnet_weights):
    """301 x 203 pixels under 512 x 384: of 11.8 people 10.9 were in the padding."""
    teacher = csrnet().eval()
    teacher.load_state_dict(read_weights(csrnet_weights)[0])
    pixels = read_pixels(shanghaitech / "images/train_IMG_3.jpg", 3)[375:578, 122:423]
    values = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    alone = Preprocess(3, *values, (1, 1), (384, 512))
    padded = Preprocess(3, *values, (384, 512), (384, 512), "mirror")
    own, found = (
        predict(teacher, [Photo("a", array=pixels)], how, torch.device("cpu"), COUNTING)[0]
        for how in (alone, padded)
    )
    assert own == pytest.approx(1.66, abs=0.05)
    assert found == pytest.approx(own, abs=0.5)  # with the mean colour 0.94 are left of it
