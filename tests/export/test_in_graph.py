"""Preprocessing inside the network against that of the host, from photo files to outputs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image

from kdcompile.backends.deployed_form import deployed_form
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.core.errors import KDError
from kdcompile.data.photo import read_pixels
from kdcompile.data.preprocess import Preprocess
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.onnx_graph.in_graph import in_graph
from kdcompile.remote.agent.pack import prepare as prepare_on_board

ROUNDING = 2e-6  # of the largest input: one product and one sum round otherwise than three steps
MEANS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocess(channels=3, padding="mirror", least=(40, 48), most=(40, 48)):
    mean, std = (tuple(each[:channels]) for each in MEANS)
    return Preprocess(channels, mean, std, least, most, padding)


def through(channels=3):
    """A network that gives its float32 input back."""
    shape = [1, channels, None, None]
    image = onnx.helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    out = onnx.helper.make_tensor_value_info("density", TensorProto.FLOAT, shape)
    node = onnx.helper.make_node("Identity", ["image"], ["density"])
    graph = onnx.helper.make_graph([node], "through", [image], [out])
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def photo(folder, size, mode, orientation=1):
    shape = (*size, 3) if mode == "RGB" else size
    values = np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)
    image, path = Image.fromarray(values, mode), folder / f"{mode}{orientation}.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


@pytest.fixture
def networks(tmp_path):
    """The float network and the deployed one, of a preprocessing."""

    def made(host):
        path = tmp_path / f"student{host.channels}.onnx"
        onnx.save(through(host.channels), path)
        with deployed_form(host, "in-graph") as form:
            return open_session(path), open_session(form.file(path)), form.prepare

    return made


@pytest.mark.parametrize("padding", ["mirror", "mean"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(("size", "turned"), [((40, 48), 1), ((31, 17), 6), ((97, 131), 8)])
def test_outputs_are_those_of_the_host(networks, tmp_path, padding, channels, mode, size, turned):
    host = preprocess(channels, padding)
    float_network, deployed, prepare = networks(host)
    pixels = read_pixels(photo(tmp_path, size, mode, turned), channels)
    given, wanted = prepare(pixels), float_network(host(pixels))
    assert (given.dtype, given.shape) == (np.uint8, (1, 40, 48, channels))
    found, frame = deployed(given), host.frame(*pixels.shape[:2])
    inside = np.s_[:, :, : frame.seen[0], : frame.seen[1]]
    limit = ROUNDING * np.abs(wanted).max()
    assert np.abs(found - wanted)[inside].max() <= limit
    # a pixel is at most half a step of 255 from the mean colour; a mirrored photo has its own
    step = 0.5 / 255 / min(host.std) if padding == "mean" else 0.0
    assert np.abs(found - wanted).max() <= limit + step
    on_board = prepare_on_board(host.scaled(pixels), prepare.to_json())
    assert on_board.dtype == np.uint8
    assert (on_board == given).all()


def test_the_first_node_is_the_cast_and_all_sizes_stay_free():
    made = in_graph(through(), *MEANS)
    assert [node.op_type for node in made.graph.node][:4] == ["Cast", "Transpose", "Mul", "Add"]
    kind = made.graph.input[0].type.tensor_type
    assert kind.elem_type == TensorProto.UINT8
    assert [dim.dim_value for dim in kind.shape.dim] == [1, 0, 0, 3]
    onnx.checker.check_model(made, full_check=True)


def test_pixels_are_priced_as_bytes():
    kernels = kernels_of(in_graph(through(), *MEANS), [1, 8, 16, 3])
    assert kernels[0].reads == {"image": 8 * 16 * 3}
    assert sum(kernel.read_bytes for kernel in kernels) > 8 * 16 * 3


def test_a_network_without_an_image_is_no_input_of_it():
    with pytest.raises(ValueError, match="not one float32 image"):
        in_graph(in_graph(through(), *MEANS), *MEANS)


def test_a_deployed_network_refuses_a_float_input(networks):
    _, deployed, _ = networks(preprocess())
    with pytest.raises(KDError, match="image takes uint8"):
        deployed(np.zeros((1, 3, 40, 48), np.float32))


def test_the_host_form_is_the_exported_file(tmp_path):
    host = preprocess()
    with deployed_form(host, "host") as form:
        assert form.file(tmp_path / "absent.onnx") == tmp_path / "absent.onnx"
        assert form.prepare.to_json() == host.to_json()
        assert "in_graph" not in form.prepare.to_json()
