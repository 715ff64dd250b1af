"""ONNX export: shapes, opsets, simplification, and the proof that training is gone."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from kdcompile.core.errors import KDError
from kdcompile.export.leftovers import prove_clean
from kdcompile.export.onnx_file import _once_each, _shared, one_registry, onnx_from_module
from kdcompile.onnx_graph.fp16 import to_bf16, to_fp16
from kdcompile.onnx_graph.layers import count_macs
from kdcompile.onnx_graph.opset import at_opset, opset_of
from kdcompile.onnx_graph.session import run_onnx
from kdcompile.passes.export import half_outputs, parity, torch_outputs
from kdcompile.tasks.agreement import agreement

FIXED = ([1, 3, 40, 56],) * 3
RANGE = ([1, 3, 24, 32], [1, 3, 40, 56], [1, 3, 64, 80])


class Net(nn.Module):
    """Every operator that a counting student is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.drop = nn.Dropout(0.5)
        self.last_norm = nn.BatchNorm2d(16)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.output = nn.Conv2d(16, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.first(image))))
        y = self.drop(x + torch.relu(self.dilated(x)))
        joined = self.last_norm(torch.cat([x, y], 1))
        density: Tensor = self.output(torch.relu(self.up(joined)))
        return density


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    module = Net()
    with torch.no_grad():
        for norm in (module.norm, module.last_norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_(1, 0.2)
    return module.eval()


@pytest.fixture(scope="module")
def dynamic(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "dynamic.onnx"
    onnx_from_module(net, path, RANGE, max_opset=17, ir_version=8)
    return path


def images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal((1, 3, *size), dtype=np.float32) for size in sizes]


def test_dynamic_file_is_what_an_old_tensorrt_reads(dynamic: Path) -> None:
    model = onnx.load(dynamic)
    assert opset_of(model) == 17
    assert model.ir_version == 8
    assert [o.domain for o in model.opset_import] == [""]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [1, 3, "height", "width"]
    assert [v.name for v in model.graph.input] == ["image"]
    assert [v.name for v in model.graph.output] == ["density"]


def test_dynamic_file_agrees_with_torch_at_odd_sizes(net: nn.Module, dynamic: Path) -> None:
    found = parity(net, dynamic, images((24, 32), (41, 57), (64, 80)))
    assert found["n"] == 3
    assert found["max_rel_error"] < 1e-5
    assert found["sqnr_db"] > 90


def test_fixed_file_has_no_symbol(net: nn.Module, tmp_path: Path) -> None:
    model = onnx_from_module(net, tmp_path / "fixed.onnx", FIXED, max_opset=18, ir_version=9)
    for value in (*model.graph.input, *model.graph.output):
        assert all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim)
    assert (opset_of(model), model.ir_version) == (18, 9)
    assert parity(net, tmp_path / "fixed.onnx", images((40, 56)))["max_rel_error"] < 1e-5


def test_a_large_network_is_written_alike(net: nn.Module, tmp_path: Path, monkeypatch) -> None:
    """Without its weights for the simplifier, and from a file for ONNX Runtime."""
    whole = onnx_from_module(net, tmp_path / "whole.onnx", FIXED)
    monkeypatch.setattr("kdcompile.export.onnx_file.LARGE_BYTES", 0)
    monkeypatch.setattr("kdcompile.onnx_graph.session.LARGE_BYTES", 0)
    monkeypatch.setattr("kdcompile.onnx_graph.shapes.LARGE", 8)
    large = onnx_from_module(net, tmp_path / "large.onnx", FIXED)
    assert list(large.graph.node) == list(whole.graph.node)
    assert list(large.graph.input) == list(whole.graph.input)
    weights = ({t.name: t for t in model.graph.initializer} for model in (whole, large))
    assert next(weights) == next(weights)


def test_macs_are_counted_at_the_given_size(dynamic: Path) -> None:
    h, w = 24, 32
    expected = h * w * 8 * 27 + (h // 2) * (w // 2) * 8 * 72 + h * w * 16
    assert count_macs(onnx.load(dynamic), [1, 3, h, w]) == expected
    assert count_macs(onnx.load(dynamic), [1, 3, 2 * h, 2 * w]) == 4 * expected


class Halves(nn.Module):
    """Takes even heights only: it joins a pooled map with itself doubled."""

    def forward(self, image: Tensor) -> Tensor:
        small = nn.functional.max_pool2d(image, 2)
        return image[:, :1] + small.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :1]


def test_network_that_does_not_take_the_range_is_refused(tmp_path: Path) -> None:
    shapes = ([1, 3, 8, 8], [1, 3, 16, 16], [1, 3, 32, 32])
    with pytest.raises(KDError) as error:
        onnx_from_module(Halves().eval(), tmp_path / "x.onnx", shapes)
    assert error.value.code == "export-dynamic"
    assert not (tmp_path / "x.onnx").exists()


class Branch(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image if float(image.sum()) > 0 else -image


def test_untraceable_network_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(KDError) as error:
        onnx_from_module(Branch().eval(), tmp_path / "x.onnx", FIXED)
    assert error.value.code == "export-failed"


class Folded(nn.Module):
    def __init__(self, edge: nn.Module) -> None:
        super().__init__()
        self.edge = edge
        self.output = nn.Conv2d(3, 1, 3)

    def forward(self, image: Tensor) -> Tensor:
        density: Tensor = self.output(self.edge(image))
        return density


def test_operator_without_older_form_is_named_with_its_module(tmp_path: Path) -> None:
    shapes = ([1, 3, 8, 8],) * 3
    edge = nn.Sequential(nn.Unfold((2, 2), stride=2), nn.Fold((8, 8), (2, 2), stride=2))
    net = Folded(edge).eval()
    with pytest.raises(KDError) as error:
        onnx_from_module(net, tmp_path / "x.onnx", shapes, max_opset=17)
    assert error.value.code == "export-opset"
    assert "Col2Im" in error.value.message
    assert "edge" in error.value.where
    onnx_from_module(net, tmp_path / "x.onnx", shapes, max_opset=18)


def test_padding_has_a_form_in_opset_16(tmp_path: Path) -> None:
    """onnx's converter has none for it, though only the axes are new in opset 18."""
    shapes = ([1, 3, 8, 8],) * 3
    net = Folded(nn.ReflectionPad2d(1)).eval()
    model = onnx_from_module(net, tmp_path / "x.onnx", shapes, max_opset=16)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert {"Pad", "Conv"} == {node.op_type for node in model.graph.node}
    assert parity(net, tmp_path / "x.onnx", images((8, 8)))["max_rel_error"] < 1e-5


def graph(
    nodes: list, constants: dict[str, np.ndarray], opset: int = 18, domain: str = ""
) -> object:
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("density", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax"])
def test_converted_operator_gives_the_same(op: str) -> None:
    node = helper.make_node(op, ["image", "axes"], ["density"], keepdims=1)
    model = graph([node], {"axes": np.array([2, 3], np.int64)})
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    converted = at_opset(model, 17, 8)
    assert opset_of(converted) == 17
    np.testing.assert_array_equal(run_onnx(converted, x), run_onnx(model, x))


def test_foreign_domain_is_refused() -> None:
    node = helper.make_node("Gelu", ["image"], ["density"], domain="com.microsoft")
    with pytest.raises(KDError, match=r"com\.microsoft") as error:
        at_opset(graph([node], {}, domain="com.microsoft"), 18, 10)
    assert error.value.where == "Gelu"


def test_invalid_file_is_refused() -> None:
    node = helper.make_node("ReduceMean", ["image", "axes"], ["density"])
    model = graph([node], {"axes": np.array([2], np.int64)}, opset=17)
    with pytest.raises(KDError) as error:
        at_opset(model, 17, 10)
    assert error.value.code == "export-opset"


def conv(weight: np.ndarray, extra: list | None = None) -> object:
    nodes = [helper.make_node("Conv", ["image", "weight"], ["density"])]
    return graph([*(extra or []), *nodes], {"weight": weight})


def student() -> nn.Module:
    module = nn.Sequential()
    module.weight = nn.Parameter(torch.randn(2, 4, 3, 3))
    return module


def test_a_clean_file_passes_and_counts_its_weights() -> None:
    assert prove_clean(conv(np.ones((2, 4, 3, 3), np.float32)), student()) == 72


@pytest.mark.parametrize("weights", [(3, 4, 3, 3), (2, 4, 3, 4)])
def test_a_weight_of_another_size_is_a_leftover(weights: tuple[int, ...]) -> None:
    with pytest.raises(KDError) as error:
        prove_clean(conv(np.ones(weights, np.float32)), student())
    assert error.value.code == "export-leftover"


@pytest.mark.parametrize("op", ["Dropout", "Identity"])
def test_a_train_time_node_is_a_leftover(op: str) -> None:
    extra = [helper.make_node(op, ["image"], ["same"])]
    with pytest.raises(KDError, match=op):
        prove_clean(conv(np.ones((2, 4, 3, 3), np.float32), extra), student())


def test_training_batchnorm_is_a_leftover() -> None:
    inputs = ["image", "a", "a", "a", "a"]
    node = helper.make_node("BatchNormalization", inputs, ["n", "m", "v"], training_mode=1)
    with pytest.raises(KDError, match="BatchNormalization"):
        prove_clean(conv(np.ones((2, 4, 3, 3), np.float32), [node]), student())


class WithAdapter(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.adapter = inner, nn.Conv2d(1, 24, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.adapter(self.inner(image)).mean(1, keepdim=True)


def test_an_adapter_in_the_graph_is_a_leftover(net: nn.Module, tmp_path: Path) -> None:
    model = onnx_from_module(WithAdapter(net).eval(), tmp_path / "a.onnx", FIXED)
    with pytest.raises(KDError, match="24 numbers"):
        prove_clean(model, net)


class Recurrent(nn.Module):
    """Initial states are made in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.last = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(24, 3)
        self.rnn = nn.LSTM(8, 24, batch_first=True)

    def forward(self, image: Tensor) -> Tensor:
        states, _ = self.rnn(self.patch(image).flatten(2).transpose(1, 2))
        return self.last(states[:, -1])


class Relative(nn.Module):
    """Attention with a table of relative positions, looked up by a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.table = nn.Conv2d(3, 8, 8, stride=8), nn.Parameter(torch.randn(69, 1))
        steps = torch.arange(35)
        index = (steps[:, None] - steps).add(34).clamp(0, 68)
        self.register_buffer("index", index, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        weights = torch.softmax(x @ x.transpose(1, 2) + self.table[self.index][..., 0], -1)
        return (weights @ x).mean(1)


class Anchored(nn.Module):
    """A grid of points that its forward makes, and keeps while the size stays the same."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.points, self.size = nn.Conv2d(3, 4, 8, stride=8), torch.empty(0), None

    def forward(self, image: Tensor) -> Tensor:
        y = self.patch(image)
        if self.size != y.shape:
            rows, columns = (torch.arange(n) + 0.5 for n in y.shape[2:])
            grid = torch.meshgrid(columns, rows, indexing="xy")
            self.points, self.size = torch.stack(grid).flatten(1), y.shape
        return torch.cat([y[:, :2].flatten(2) + self.points, y[:, 2:].flatten(2)], 1)


@pytest.mark.parametrize("kind", [Recurrent, Relative, Anchored])
@pytest.mark.parametrize("has_run", [False, True])
def test_what_a_forward_computes_is_no_leftover(kind, has_run: bool, tmp_path: Path) -> None:
    net, shape = kind().eval(), (1, 3, 40, 56)
    if has_run:
        net(torch.zeros(shape))
    onnx_from_module(net, tmp_path / "a.onnx", (shape,) * 3)
    assert parity(net, tmp_path / "a.onnx", images(shape[2:]))["max_rel_error"] < 1e-4


def test_a_weight_that_the_network_does_not_know_is_named(tmp_path: Path) -> None:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.adapters = nn.Conv2d(3, 4, 1), [nn.Conv2d(4, 24, 1)]

        def forward(self, image: Tensor) -> Tensor:
            return self.adapters[0](self.inner(image)).mean(1, keepdim=True)

    with pytest.raises(KDError, match=r"a tensor of \[24, 4, 1, 1\] that is no parameter") as error:
        onnx_from_module(Hiding().eval(), tmp_path / "a.onnx", FIXED)
    assert error.value.code == "export-leftover"
    assert "nn.ModuleList" in error.value.fix


def test_fp16_has_float32_ends_and_half_inside(net: nn.Module, dynamic: Path) -> None:
    model = onnx.load(dynamic)
    half = to_fp16(model)
    ends = [v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)]
    assert ends == [TensorProto.FLOAT] * 2
    assert [n.op_type for n in half.graph.node].count("Cast") == 2
    scales = {n.input[2] for n in half.graph.node if n.op_type == "Resize"}
    assert scales
    types = {t.name: t.data_type for t in half.graph.initializer}
    assert all((types[n] == TensorProto.FLOAT) == (n in scales) for n in types)
    (x,) = images((41, 57))
    found = agreement([run_onnx(model, x)], [run_onnx(half, x)])
    assert 50 < found["sqnr_db"] < 100  # float16 carries 11 bits


def test_a_classifier_s_pooling_has_a_form_in_opset_17(tmp_path: Path) -> None:
    """`AdaptiveAvgPool2d(1)` is a ReduceMean, whose newer attribute onnx's converter keeps."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model = onnx_from_module(net, tmp_path / "a.onnx", FIXED, 17, 8, "logits")
    assert opset_of(model) == 17
    assert parity(net, tmp_path / "a.onnx", images(FIXED[0][2:]))["max_rel_error"] < 1e-5


def test_bf16_keeps_the_upper_bits_and_compiles(dynamic: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from kdcompile.backends.tensorrt_rtx_ import compile_check

    model = to_bf16(onnx.load(dynamic))
    weights = {t.name: t for t in onnx.load(dynamic).graph.initializer}
    narrowed = [t for t in model.graph.initializer if t.data_type == TensorProto.BFLOAT16]
    assert narrowed
    for tensor in narrowed:
        wide = numpy_helper.to_array(weights[tensor.name])
        expected = torch.from_numpy(wide.copy()).bfloat16().float().numpy()
        assert np.array_equal(numpy_helper.to_array(tensor).astype(np.float32), expected)
    onnx.save(model, tmp_path / "bf16.onnx")
    (found,) = compile_check(tmp_path / "bf16.onnx", ("8.6",), RANGE)
    assert found["ok"], found["errors"]


def test_fp16_refuses_a_weight_that_overflows() -> None:
    with pytest.raises(KDError) as error:
        to_fp16(conv(np.full((2, 4, 3, 3), 7e4, np.float32)))
    assert (error.value.code, error.value.where) == ("fp16-overflow", "weight")


def test_half_outputs_round_and_overflow(net: nn.Module) -> None:
    (x,) = images((40, 56))
    found = agreement(torch_outputs(net, [x]), half_outputs(net, [x]))
    assert 45 < found["sqnr_db"] < 90
    assert not np.isfinite(half_outputs(net, [x * 1e6])[0]).all()


def test_agreement_by_hand() -> None:
    a, b = np.array([3.0, -4.0], np.float32), np.array([3.0, -3.5], np.float32)
    found = agreement([a], [b])
    assert found["max_rel_error"] == pytest.approx(0.5 / 4)
    assert found["sqnr_db"] == pytest.approx(20 * np.log10(5 / 0.5))
    assert json.dumps(agreement([a], [a])) == '{"max_rel_error": 0.0, "sqnr_db": 200.0, "n": 1}'


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_agreement_refuses_nonfinite(bad: float) -> None:
    a = np.ones(2, np.float32)
    with pytest.raises(KDError) as error:
        agreement([a], [np.array([1, bad], np.float32)])
    assert error.value.code == "parity-nonfinite"


def test_agreement_needs_images() -> None:
    with pytest.raises(KDError) as error:
        agreement([], [])
    assert error.value.code == "parity-empty"


def test_exports_share_one_registry_and_torch_keeps_its_own(tmp_path):
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    make, counted = vars(ONNXRegistry)["from_torchlib"], []
    assert isinstance(make, classmethod), "torch has another method now: see one_registry"

    def counting(cls, *args, **options):
        counted.append(cls)
        return make.__func__(cls, *args, **options)

    ONNXRegistry.from_torchlib = classmethod(counting)
    try:
        _shared.cache_clear()
        files = []
        for name in ("a", "b"):
            torch.manual_seed(0)
            onnx_from_module(nn.Conv2d(3, 4, 3).eval(), tmp_path / name, [[1, 3, 8, 8]] * 3)
            files.append((tmp_path / name).read_bytes())
        assert len(counted) == 1
        assert files[0] == files[1]
        assert vars(ONNXRegistry)["from_torchlib"].__func__ is counting
    finally:
        ONNXRegistry.from_torchlib = make
        _shared.cache_clear()


def test_torch_looks_its_operators_up_once_until_there_are_more(monkeypatch):
    listed, looked = ["aten::a"], []
    name = "_dispatch_get_registrations_for_dispatch_key"
    monkeypatch.setattr(torch._C, name, lambda key: list(listed))
    look_up = _once_each(lambda: looked.append(len(listed)))
    look_up()
    look_up()
    listed.append("users::b")  # a library of the user's has registered its own
    look_up()
    assert looked == [1, 2]


def test_every_export_asks_torch_so_and_leaves_it_as_it_was():
    from torch._export import utils

    own = utils._materialize_cpp_cia_ops  # else torch has another function now: see one_registry
    with one_registry():
        assert utils._materialize_cpp_cia_ops.__wrapped__ is _once_each(own)
    assert utils._materialize_cpp_cia_ops is own
