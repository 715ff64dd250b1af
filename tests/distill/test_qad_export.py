"""The exported Q/DQ file computes what the quantised student computes in PyTorch."""

import copy
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from tiny_training import network, photos, trainer
from torch import nn

from kdcompile.calib.qad_table import read_qad, table_from_qad
from kdcompile.calib.qdq import insert_qdq, quantise, weight_scales
from kdcompile.core.errors import KDError
from kdcompile.distill import qad as qad_module
from kdcompile.distill.qad import chosen_scales, observe
from kdcompile.distill.qad_layers import find_layers
from kdcompile.distill.qad_modules import attach, plain_weights
from kdcompile.distill.qad_modules import weight_scales as torch_scales
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.onnx_graph.layers import quantised_layers
from kdcompile.targets import load

TARGET = load("jetson")


class Mixed(nn.Module):
    """Residual and concatenation, batch norms to fold, a layer called twice, 3-D products."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.twice = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.up, self.norm2 = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.BatchNorm2d(8)
        self.tokens, self.head = nn.Linear(8, 8), nn.Linear(8, 6)
        self.norm3, self.output = nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, image):
        x = torch.relu(self.norm(self.stem(image)))
        y = torch.cat([torch.relu(self.left(x)) + x, self.right(self.drop(x))], 1)
        y = torch.relu(self.twice(torch.relu(self.twice(y))))
        y = torch.relu(self.norm2(self.up(y))).flatten(2).transpose(1, 2)
        y = torch.relu(self.tokens(y)).amax(1)
        return self.output(torch.relu(self.norm3(self.head(y))))


def _mixed():
    torch.manual_seed(0)
    net = Mixed()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.7)  # some are negative
            nn.init.normal_(module.bias)
    for _ in range(20):
        net.train()(torch.randn(8, 1, 12, 12))
    return net.eval()


def _record(net, layers, histograms):
    scales = net.kd_quantiser.scales().tolist()
    return {
        "scales": "learnt",
        "images": [{"name": "a", "sha256": "0"}],
        "tensors": [
            {"scale": s, "saturation": 0.0, "minimum": h.minimum, "maximum": h.maximum}
            for s, h in zip(scales, histograms, strict=True)
        ],
        "layers": [qad_module._layer_record(net, layer) for layer in layers],
    }


def _quantised(plain, images, calibrator):
    """A copy that is quantised in PyTorch, and the record of it."""
    net = copy.deepcopy(plain)
    layers = find_layers(net, images[:1])
    quantiser = attach(net, layers, learnt=True)
    histograms = observe(net, layers, [images])
    quantiser.log_scale.data = torch.tensor(chosen_scales(histograms, calibrator)).log()
    quantiser.on = True
    return net, _record(net, layers, histograms)


def _exported(plain, path, shape):
    return onnx_from_module(plain, path, (shape,) * 3, TARGET.max_opset, TARGET.ir_version, "out")


def _run(model, images, names=None):
    """ONNX Runtime without optimisations, so that every pair is computed as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = model.graph.input[0].name
    return [session.run(names, {feed: image[None].numpy()}) for image in images]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    plain = _mixed()
    images = torch.randn(6, 1, 12, 12)
    model = _exported(plain, tmp_path_factory.mktemp("mixed") / "net.onnx", (1, 1, 12, 12))
    return plain, images, model, *_quantised(plain, images, "mse")


def test_the_layers_are_those_of_the_file(mixed):
    _, _, model, net, record = mixed
    found = [layer["module"] for layer in record["layers"]]
    assert found == ["stem", "left", "right", "twice", "twice", "up", "tokens", "head"]
    assert len(quantised_layers(model)) == len(found)
    tensors = [layer["tensor"] for layer in record["layers"]]
    assert tensors == [0, 1, 1, 2, 2, 3, 4, 5]  # one tensor, or one layer: one scale
    table = table_from_qad(model, "sha", record)
    assert table.calibrator == "qad-learnt"
    first = [layer.data for layer in quantised_layers(model)]
    scales = net.kd_quantiser.scales().tolist()
    assert [table.tensors[name].scale for name in first] == [scales[t] for t in tensors]


@pytest.mark.parametrize("storage", ["int8", "float"])
def test_the_file_computes_what_pytorch_trained(mixed, storage):
    plain, images, model, net, record = mixed
    quantised = insert_qdq(model, table_from_qad(model, "sha", record), storage)
    got = np.concatenate([run[0] for run in _run(quantised, images)])
    with torch.no_grad():
        expected, exact = net(images).numpy(), plain(images).numpy()
    step = np.abs(expected).max() / 127
    assert np.abs(got - expected).max() < 0.05 * step
    assert np.abs(got - exact).max() > 0.5 * step  # while int8 is not float32


def test_every_tensor_is_rounded_alike(mixed):
    _, images, model, net, record = mixed
    quantised = insert_qdq(model, table_from_qad(model, "sha", record))
    nodes = [n for n in quantised.graph.node if n.op_type == "QuantizeLinear"]
    names = [node.output[0] for node in nodes]
    quantised.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    runs = _run(quantised, images, names)
    seen, handles = {}, []
    data = [layer.data for layer in quantised_layers(model)]
    modules = [layer["module"] for layer in record["layers"]]
    for name in dict.fromkeys(modules):
        hook = lambda _m, x, name=name: seen.setdefault(name, []).append(x[0])  # noqa: E731
        handles.append(net.get_submodule(name).register_forward_pre_hook(hook))
    calls: dict[str, int] = {}
    with torch.no_grad():
        net(images)
    scales = {t.name: numpy_helper.to_array(t) for t in quantised.graph.initializer}
    for tensor, module in zip(data, modules, strict=True):
        values = seen[module][calls.setdefault(module, 0)]
        calls[module] += 1
        scale = float(scales[f"{tensor}_scale"])
        levels = (values / scale).round().clamp(-128, 127).numpy()
        place = [node.input[0] for node in nodes].index(tensor)
        own = np.concatenate([run[place] for run in runs]).reshape(levels.shape).astype(int)
        assert np.abs(own - levels).max() <= 1
        assert (own != levels).mean() < 2e-3
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(("shape", "axis"), [((5, 3, 3, 3), 0), ((4, 6, 2, 2), 1), ((4, 2), None)])
def test_weights_are_rounded_as_the_file_stores_them(shape, axis):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight[0] = 0.0  # a dead channel
    scales = weight_scales(weight.numpy(), axis)
    assert np.array_equal(torch_scales(weight, axis).numpy(), scales)
    levels = quantise(weight.numpy(), scales, axis)
    assert np.abs(levels).max() == 127


def test_a_trained_student_agrees_with_its_file(spec, tmp_path):
    """From the trainer to the table: the digits' kind of network."""
    training = trainer(spec("quantize.qad=true", "distill.steps=24"), tmp_path / "work")
    state = training.run()
    training.conclude()
    record = training.qad.record(photos(4, 5))
    plain = network(4, 3)
    plain.load_state_dict(plain_weights(state.best))
    model = _exported(plain.eval(), tmp_path / "student.onnx", (1, 1, 16, 16))
    table = table_from_qad(model, "sha", record)
    images = torch.randn(4, 1, 16, 16)
    got = np.concatenate([run[0] for run in _run(insert_qdq(model, table), images)])
    with torch.no_grad():
        expected = training.setting.ema(images).numpy()
    step = np.abs(expected).max() / 127
    assert np.abs(got - expected).max() < step
    entry = next(iter(table.tensors.values()))
    assert entry.amax == 127 * entry.scale
    assert entry.minimum < entry.maximum


def test_a_file_of_another_student_is_refused(mixed, tmp_path):
    plain, _, own, _, record = mixed
    other = copy.deepcopy(plain)
    other.left.weight.data[3] *= 1.01
    model = _exported(other, tmp_path / "other.onnx", (1, 1, 12, 12))
    with pytest.raises(KDError) as error:
        table_from_qad(model, "sha", record)
    assert error.value.code == "qad-mismatch"
    assert "exporting again" in error.value.fix
    assert table_from_qad(own, "sha", record).tensors  # the fix
    with pytest.raises(KDError) as error:
        table_from_qad(own, "sha", record | {"layers": [*record["layers"], record["layers"][0]]})
    assert "does not quantise stem" in error.value.message


def test_a_record_is_read_or_refused(tmp_path):
    for text in (None, '{"layers": 3}'):  # nothing was trained in int8: no other ranges are taken
        if text is not None:
            (tmp_path / "qad.json").write_text(text)
        with pytest.raises(KDError) as error:
            read_qad(tmp_path)
        assert error.value.code == "qad-table"
        assert "quantize.qad = true" in error.value.fix


class Functional(nn.Module):
    """Uses a layer's weight without calling the layer, or a product with a bare parameter."""

    def __init__(self, bare):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 1)
        self.bare = nn.Parameter(torch.randn(4, 4)) if bare else None

    def forward(self, image):
        x = nn.functional.conv2d(image, self.first.weight).mean((2, 3)).relu()
        return self.last(x if self.bare is None else (x @ self.bare).relu())


class Untraceable(nn.Module):
    """Its control flow reads values."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("net", "shape", "code", "message"),
    [
        (Functional(bare=False), (1, 1, 8, 8), "qad-layer", "outside its own forward"),
        (Functional(bare=True), (1, 1, 8, 8), "qad-layer", "not trained in int8"),
        (Untraceable(), (1, 4), "qad-trace", "cannot trace"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), (1, 1, 8, 8), "calib-nothing", "no layer"),
    ],
)
def test_layers_that_cannot_be_trained_in_int8(net, shape, code, message):
    with pytest.raises(KDError) as error:
        find_layers(net, torch.ones(shape))
    assert error.value.code == code
    assert message in error.value.message
    assert "quantize.qad = false" in error.value.fix


def test_torch_compile_takes_the_quantised_student_whole():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 1))
    images = torch.randn(2, 1, 4, 4)
    net, _ = _quantised(plain, images, "minmax")
    results = []
    torch._dynamo.reset()
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        net.zero_grad()
        with warnings.catch_warnings():
            # PyTorch 2.13 warns about what its own tracer does with autograd functions
            warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
            output = run(images)
            output.square().sum().backward()
        grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        results.append((output.detach(), grads))
    (a, own), (b, other) = results
    assert torch.equal(a, b)
    assert len(own) == len(other) == len(list(net.parameters()))
    assert all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(own, other, strict=True))


def test_the_gradient_of_a_learnt_scale_is_lsq():
    """Against autograd through s clamp(round(x / s)) with a straight-through rounding."""
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1))
    x = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    quantiser = attach(net, find_layers(net, x[:1]), learnt=True)
    quantiser.log_scale.data.fill_(-3.5)  # some values are clipped
    up = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    own = x.clone().requires_grad_()
    (quantiser(own, 0) * up).sum().backward()
    log, other = torch.tensor(-3.5, requires_grad=True), x.clone().requires_grad_()
    scale = log.exp()
    v = other / scale
    places = v + (v.round() - v).detach()
    (places.clamp(-128, 127) * scale * up).sum().backward()
    assert float(quantiser.log_scale.grad[0]) == pytest.approx(float(log.grad), rel=1e-4)
    assert torch.allclose(own.grad, other.grad)
    assert 0 < int((own.grad == 0).sum()) < own.numel()
