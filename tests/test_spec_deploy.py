"""The fields of `[quantize]`, `[compile]` and `[export]`, and an export whose batch is free."""

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from pydantic import ValidationError
from torch import nn

from kdcompile.config.load import load_spec
from kdcompile.config.spec import Compile, Export, Quantize, Spec
from kdcompile.core.errors import KDError
from kdcompile.export.onnx_file import onnx_from_module

SPEC = """
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "points-jsonl"
root = "data"
"""


@pytest.fixture
def spec_file(tmp_path):
    (tmp_path / "kdcompile.toml").write_text(SPEC)
    return tmp_path / "kdcompile.toml"


def test_defaults_leave_the_choice_to_the_build():
    quantize, settings = Quantize(), Compile()
    assert (quantize.precision, quantize.calibrator, quantize.select) == ("auto", "entropy", "even")
    assert (quantize.refine, quantize.cache, quantize.qad) == ([], None, False)
    assert (settings.backend, settings.dla, settings.optimization_level) == ("auto", None, None)
    assert not settings.deterministic
    assert not settings.sparsity


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8", "mixed", "auto"])
def test_precisions(spec_file, precision):
    spec = load_spec(spec_file, [f"quantize.precision={precision}"])
    assert spec.quantize.precision == precision


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "tensorrt", "dla": 1, "sparsity": True},
        {"backend": "auto", "deterministic": True, "dla": 0},
        {"backend": "onnxruntime-cuda", "workspace_mb": 16},
        {"optimization_level": 0},
        {"optimization_level": 5},
    ],
)
def test_settings_that_go_together(settings):
    made = Compile(**settings)
    assert {name: getattr(made, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("sets", "fragment"),
    [
        (["quantize.precision=int4"], "'auto', 'fp32', 'fp16', 'bf16', 'int8', 'fp8' or 'mixed'"),
        (["quantize.qad_start=1.0"], "less than 1"),
        (["quantize.select=best"], "pcoreset"),
        (["quantize.refine=['sharpen']"], "equalise"),
        (["quantize.images=0"], "greater than or equal to 1"),
        (["compile.dla=2"], "less than or equal to 1"),
        (["compile.workspace_mb=1"], "16"),
        (["compile.optimization_level=6"], "less than or equal to 5"),
        (["compile.backend=onnxruntime", "compile.dla=0"], 'need backend = "tensorrt"'),
        (["compile.backend=onnxruntime-cuda", "compile.sparsity=true"], "sparsity"),
        (["compile.backend=onnxruntime-tensorrt", "compile.deterministic=true"], "deterministic"),
        (["compile.backend=onnxruntime", "compile.optimization_level=3"], "optimization_level"),
        (["compile.optimisation_level=3"], "did you mean 'optimization_level'?"),
        (["quantize.cach=x"], "did you mean 'cache'?"),
    ],
)
def test_a_bad_value_names_its_field(spec_file, sets, fragment):
    with pytest.raises(KDError) as error:
        load_spec(spec_file, sets)
    assert error.value.code == "spec-invalid"
    assert fragment in error.value.message
    assert error.value.where.startswith(str(spec_file))
    assert error.value.fix


def test_a_calibration_cache_lies_beside_the_spec(spec_file):
    spec_file.write_text(SPEC + '[quantize]\ncache = "ranges.cache"\n')
    assert load_spec(spec_file).quantize.cache == spec_file.parent / "ranges.cache"


def shapes(low, usual, high):
    return {"min": low, "opt": usual, "max": high}


@pytest.mark.parametrize(
    ("low", "usual", "high"),
    [
        ([1, 3, 64, 64], [1, 3, 64, 64], [8, 3, 64, 64]),
        ([1, 3, 64, 64], [4, 3, 64, 96], [8, 3, 96, 128]),
    ],
)
def test_a_batch_may_range(low, usual, high):
    export = Export(shape=shapes(low, usual, high))
    assert export.profile == (low, usual, high)
    assert export.is_dynamic


def test_a_fixed_shape_is_its_own_profile():
    export = Export(shape=[1, 3, 8, 8])
    assert export.profile == ([1, 3, 8, 8],) * 3
    assert not export.is_dynamic
    assert not Export(shape=shapes(*[[1, 3, 8, 8]] * 3)).is_dynamic
    assert Export(shape=Export(shape=shapes(*[[1, 3, 8, 8]] * 3)).shape).profile[0] == [1, 3, 8, 8]


@pytest.mark.parametrize(
    ("low", "usual", "high"),
    [
        ([2, 3, 64, 64], [4, 3, 64, 64], [8, 3, 64, 64]),  # one image must run
        ([1, 3, 64, 64], [9, 3, 64, 64], [8, 3, 64, 64]),
        ([1, 3, 64, 64], [1, 3, 32, 64], [1, 3, 64, 64]),
        ([1, 3, 64, 64], [1, 1, 64, 64], [1, 3, 64, 64]),
    ],
)
def test_a_range_that_no_engine_has(low, usual, high):
    with pytest.raises(ValidationError, match="smallest batch 1"):
        Export(shape=shapes(low, usual, high))


@pytest.mark.parametrize(
    ("value", "field", "message"),
    [
        ("[1, 3, 0, 5]", "export.shape.2", "greater than or equal to 1, got 0"),
        ("[1, 3]", "export.shape", "at least 4 items"),
        ("5", "export.shape", "valid list"),
        ("{min=[1,3,8,8], opt=[1,3,8,8]}", "export.shape.max", "is missing"),
        ("{min=[1,3,9,8], opt=[1,3,8,8], max=[1,3,8,8]}", "export.shape", "min <= opt <= max"),
        ("{min=[1,3,8], opt=[1,3,8,8], max=[1,3,8,8]}", "export.shape.min", "at least 4 items"),
        (
            "{min=[1,3,8,8], opt=[1,3,8,8], max=[1,3,8,8], mix=1}",
            "export.shape.mix",
            "did you mean 'min'?",
        ),
    ],
)
def test_an_error_is_of_the_form_that_was_written(spec_file, value, field, message):
    with pytest.raises(KDError) as error:
        load_spec(spec_file, [f"export.shape={value}"])
    assert message in error.value.message
    assert error.value.where == f"{spec_file} [{field}]"
    assert " more)" not in error.value.message


class Network(nn.Module):
    """Convolutions, a skip, and a mean over each image, which a batch must not mix."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.output = nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1)

    def forward(self, image):
        found = torch.relu(self.norm(self.first(image)))
        found = found + torch.relu(self.second(found))
        return self.output(found - found.mean((1, 2, 3), keepdim=True))


@pytest.fixture(scope="module")
def free_batch(tmp_path_factory):
    """A network and its file with a batch of 1 to 4."""
    network = Network().eval()
    path = tmp_path_factory.mktemp("free") / "free.onnx"
    onnx_from_module(network, path, ([1, 3, 12, 16], [2, 3, 12, 16], [4, 3, 12, 16]))
    return network, path


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_free_batch_is_pytorchs(free_batch, batch):
    network, path = free_batch
    images = np.random.default_rng(batch).standard_normal((batch, 3, 12, 16)).astype(np.float32)
    (found,) = InferenceSession(path).run(None, {"image": images})
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    assert found.shape == (batch, 1, 12, 16)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # no image's answer depends on its neighbours
    (alone,) = InferenceSession(path).run(None, {"image": images[-1:]})
    np.testing.assert_allclose(found[-1:], alone, rtol=1e-4, atol=1e-5)


def test_only_the_batch_is_free(free_batch):
    model = onnx.load(free_batch[1])
    for port, channels in ((model.graph.input[0], 3), (model.graph.output[0], 1)):
        batch, *rest = port.type.tensor_type.shape.dim
        assert batch.dim_param
        assert [size.dim_value for size in rest] == [channels, 12, 16]


def test_a_network_that_takes_one_image_only_is_refused(tmp_path):
    class OneImage(nn.Module):
        def forward(self, image):
            return image.reshape(1, 3, 8, 8).mean(1, keepdim=True)

    shapes = ([1, 3, 8, 8], [1, 3, 8, 8], [4, 3, 8, 8])
    with pytest.raises(KDError) as error:
        onnx_from_module(OneImage().eval(), tmp_path / "a.onnx", shapes)
    assert error.value.code == "network-forward"
    assert "[4, 3, 8, 8]" in error.value.message
    assert error.value.fix
    assert not (tmp_path / "a.onnx").exists()


def test_preprocessing_inside_the_network_is_of_one_image():
    assert Export().preprocess == "host"
    sections = {
        "teacher": {"model": "m.py:f", "weights": "w.pt"},
        "data": {"format": "npz", "root": "."},
        "export": {"preprocess": "in-graph"},
    }
    assert Spec.model_validate(sections).export.preprocess == "in-graph"
    with pytest.raises(ValueError, match=r"no export\.preprocess"):
        Spec.model_validate({**sections, "task": {"kind": "generic"}})
