"""An ONNX file and a program of torch.export as networks that are traced and made narrower."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.models.channels import trace
from kdcompile.models.onnx_import import inputs_of, load_onnx
from kdcompile.models.program import load_program
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.onnx_graph.session import cpu_session
from kdcompile.search.spaces.pruned import students


class Convolutions(nn.Module):
    """What networks of images have: norms, depthwise, squeeze-excitation, up-sampling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.Hardswish())
        self.deep = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 16, 1), nn.SiLU(), nn.Conv2d(16, 32, 1)
        )
        self.up = nn.ConvTranspose2d(32, 32, 2, 2)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.deep(x)
        y = x + y * torch.sigmoid(self.squeeze(y))
        y = torch.cat([self.up(y), nn.functional.interpolate(x, scale_factor=2.0)], 1)
        return self.head(y.mean((2, 3)))


class Attention(nn.Module):
    """A transformer's block on patches, with a class token and positions."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, 64))
        self.places = nn.Parameter(torch.randn(1, 17, 64))
        self.norm = nn.LayerNorm(64)
        self.attend = nn.MultiheadAttention(64, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.first.expand(len(y), -1, -1), y], 1) + self.places
        z = self.norm(y)
        y = y + self.attend(z, z, z, need_weights=False)[0]
        return self.head((y + self.mlp(y))[:, 0])


SHAPE = (1, 3, 16, 16)


def made(kind):
    torch.manual_seed(0)
    network = kind().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def exported(network, path, **options):
    with torch.no_grad():
        torch.onnx.export(
            network, (torch.randn(SHAPE),), path, input_names=["image"], dynamo=True,
            opset_version=18, external_data=False, verbose=False, **options,
        )  # fmt: skip
    return path


def loaded(network, form, folder):
    if form == "onnx":
        return load_onnx(exported(network, folder / "net.onnx"))
    with torch.no_grad():
        program = torch.export.export(network, (torch.randn(SHAPE),))
    torch.export.save(program, folder / "net.pt2")
    return load_program(folder / "net.pt2")


def off(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("form", ["onnx", "program"])
@pytest.mark.parametrize("kind", [Convolutions, Attention])
def test_a_file_is_exact_at_any_batch_and_is_made_narrower(kind, form, tmp_path):
    network = made(kind)
    found = loaded(network, form, tmp_path)
    x = torch.randn(3, *SHAPE[1:])
    with torch.no_grad():
        assert off(found(x), network(x)) < 1e-5
    torch.export.export(found, (x,))
    channels = trace(found, SHAPE)
    student = student_from_architecture(found, students(channels, 8, 0, [0.5])[0], Path())
    kept, whole = (sum(p.numel() for p in net.parameters()) for net in (student, found))
    assert kept < 0.36 * whole
    assert student.eval()(x).shape == (3, 5)


@pytest.mark.filterwarnings("ignore")
def test_layers_have_the_names_of_their_weights(tmp_path):
    found = load_onnx(exported(made(Convolutions), tmp_path / "net.onnx"))
    kinds = {n: type(m).__name__ for n, m in found.named_modules() if not list(m.children())}
    assert kinds.items() >= {
        "stem.0": "Conv2d", "deep": "Conv2d", "squeeze.1": "Conv2d", "up": "ConvTranspose2d",
        "head": "Linear",
    }.items()  # fmt: skip
    assert found.forward.__code__.co_varnames[:2] == ("self", "image")


@pytest.mark.filterwarnings("ignore")
def test_a_dynamic_file_runs_at_other_sizes(tmp_path):
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=8, max=64)}
    network = made(Convolutions)
    path = exported(network, tmp_path / "net.onnx", dynamic_shapes=(dims,))
    assert inputs_of(path) == [("image", ["batch", 3, "height", 16], torch.float32)]
    with pytest.raises(KDError, match="leaves axes open: height") as error:
        load_onnx(path)
    assert error.value.code == "onnx-shape"
    found = load_onnx(path, SHAPE)
    x = torch.randn(2, 3, 24, 16)
    with torch.no_grad():
        assert off(found(x), network(x)) < 1e-5


def written(path, nodes, constants=(), opset=17, inputs=(("x", TensorProto.FLOAT, [1, 4, 4]),)):
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(v, n) for n, v in constants],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def test_all_operators_that_are_not_read_are_named(tmp_path):
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="places"),
        helper.make_node("Det", ["x"], ["b"], name="determinant"),
        helper.make_node("Inverse", ["x"], ["y"], domain="com.microsoft", name="inverse"),
    ]
    with pytest.raises(KDError) as error:
        load_onnx(written(tmp_path / "n.onnx", nodes))
    assert error.value.code == "onnx-operator"
    assert error.value.message.endswith(": Det, NonZero, com.microsoft.Inverse")
    assert "NonZero is 'places'" in error.value.where


def branches(condition, inputs, more=()):
    """If: the input's negative, else the input."""
    inner = [
        helper.make_graph([helper.make_node(op, ["x"], [op])], op, [],
                          [helper.make_empty_tensor_value_info(op)])
        for op in ("Neg", "Identity")
    ]  # fmt: skip
    choose = helper.make_node("If", [condition], ["y"], name="choose", then_branch=inner[0],
                              else_branch=inner[1])  # fmt: skip
    return {"nodes": [*more, choose], "inputs": inputs}


def test_a_condition_on_sizes_is_decided_and_one_on_values_is_refused(tmp_path):
    x = torch.randn(1, 4, 4)
    image = ("x", TensorProto.FLOAT, [1, 4, 4])
    size = [
        helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "one"], ["n"]),
        helper.make_node("Equal", ["n", "four"], ["is"]),
    ]  # fmt: skip
    constants = [("one", np.array(1, np.int64)), ("four", np.array(4, np.int64))]
    path = written(tmp_path / "a.onnx", constants=constants, **branches("is", [image], size))
    assert torch.equal(load_onnx(path)(x), -x)
    inputs = [image, ("flag", TensorProto.BOOL, [])]
    with pytest.raises(KDError, match="If whose condition") as error:
        load_onnx(written(tmp_path / "b.onnx", **branches("flag", inputs)))
    assert (error.value.code, error.value.where) == ("onnx-operator", "choose")


def test_a_quantised_file_is_refused_in_its_own_words(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
    ]
    path = written(tmp_path / "q.onnx", nodes, [("scale", np.array(0.1, np.float32))])
    with pytest.raises(KDError) as error:
        load_onnx(path)
    assert error.value.code == "onnx-quantised"
    assert "1 QuantizeLinear, 1 DequantizeLinear" in error.value.message
    assert "give the float network" in error.value.fix


@pytest.mark.parametrize(
    ("content", "code"),
    [(None, "onnx-missing"), (b"", "onnx-unreadable"), (b"no network", "onnx-unreadable")],
)
def test_files_that_are_no_networks(content, code, tmp_path):
    if content is not None:
        (tmp_path / "n.onnx").write_bytes(content)
    with pytest.raises(KDError) as error:
        load_onnx(tmp_path / "n.onnx")
    assert error.value.code == code


def test_an_old_file_is_refused(tmp_path):
    path = written(tmp_path / "n.onnx", [helper.make_node("Relu", ["x"], ["y"])], opset=6)
    with pytest.raises(KDError, match="opset 6"):
        load_onnx(path)


def test_an_operator_in_a_form_that_is_not_read(tmp_path):
    weights = [("w", np.ones((1, 12, 4), np.float32)), ("r", np.ones((1, 12, 4), np.float32))]
    node = helper.make_node("GRU", ["x", "w", "r"], ["y"], name="recurrent", hidden_size=4)
    with pytest.raises(KDError, match="linear_before_reset") as error:
        load_onnx(written(tmp_path / "n.onnx", [node], weights))
    assert error.value.where == "recurrent"


def test_sizes_that_do_not_fit(tmp_path):
    weights = [("w", np.ones((5, 3), np.float32))]
    path = written(tmp_path / "n.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], weights)
    with pytest.raises(KDError) as error:
        load_onnx(path)
    assert error.value.code == "onnx-node"
    assert "MatMul" in error.value.message
    with pytest.raises(KDError, match="has 3 axes, not 4"):
        load_onnx(path, (1, 2, 3, 4))


def test_half_precision_and_external_data_are_read_as_float32(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    path = written(tmp_path / "n.onnx", nodes, [("w", weight)])
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="n.data", size_threshold=0)
    assert (tmp_path / "n.data").is_file()
    x = torch.randn(1, 4, 4)
    (expected,) = cpu_session(path).run(None, {"x": x.numpy()})
    found = load_onnx(path)
    assert all(p.dtype == torch.float32 for p in found.parameters())
    assert np.allclose(found(x).detach().numpy(), expected, atol=1e-5)
    (tmp_path / "n.data").unlink()
    assert inputs_of(path)[0][0] == "x"
    with pytest.raises(KDError) as error:
        load_onnx(path)
    assert error.value.code == "onnx-unreadable"


def test_a_layer_that_runs_twice_is_one_module_with_its_bias(tmp_path):
    weights = [("w", np.ones((4, 4), np.float32)), ("b", np.arange(4, dtype=np.float32))]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["d"]), helper.make_node("Add", ["b", "d"], ["y"]),
    ]  # fmt: skip
    found = load_onnx(written(tmp_path / "n.onnx", nodes, weights))
    linear = [m for m in found.modules() if isinstance(m, nn.Linear)]
    assert [layer.bias.tolist() for layer in linear] == [[0.0, 1.0, 2.0, 3.0]]
    assert len(list(found.parameters())) == 2


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_a_layer_norm_in_parts_is_one_layer(square, tmp_path):
    random = np.random.default_rng(0)
    constants = [
        ("two", np.float32(2)), ("eps", np.float32(1e-3)),
        ("w", random.standard_normal(4).astype(np.float32)), ("b", np.ones(4, np.float32)),
    ]  # fmt: skip
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[-1]), node("Sub", ["x", "m"], ["d"]),
        node(square, ["d", "two" if square == "Pow" else "d"], ["q"]),
        node("ReduceMean", ["q"], ["v"], axes=[2]), node("Add", ["v", "eps"], ["a"]),
        node("Sqrt", ["a"], ["s"]), node("Div", ["d", "s"], ["n"]),
        node("Mul", ["n", "w"], ["k"]), node("Add", ["k", "b"], ["y"]),
    ]  # fmt: skip
    path = written(tmp_path / "n.onnx", nodes, constants)
    found, x = load_onnx(path), torch.randn(1, 4, 4)
    (expected,) = cpu_session(path).run(None, {"x": x.numpy()})
    assert [type(m) for m in found.children()] == [nn.LayerNorm]
    assert np.abs(found(x).detach().numpy() - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore")
def test_programs_that_are_none(tmp_path):
    (tmp_path / "n.pt2").write_bytes(b"PK")
    for name, code in (("absent.pt2", "program-missing"), ("n.pt2", "program-unreadable")):
        with pytest.raises(KDError) as error:
            load_program(tmp_path / name)
        assert error.value.code == code
