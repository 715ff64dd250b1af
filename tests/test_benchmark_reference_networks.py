"""benchmarks/reference_networks.py: counts against published ones, and small files."""

import copy
import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from kdcompile.onnx_graph.opset import opset_of
from kdcompile.onnx_graph.session import cpu_session

PARTS = (
    "networks", "export", "resnet", "mobilenet", "ssd", "retinanet", "yolo_blocks", "yolo", "vit",
)  # fmt: skip


@pytest.fixture(scope="module")
def scripts():
    """The scripts by the last part of their names."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        yield SimpleNamespace(**{p: importlib.import_module(f"reference_{p}") for p in PARTS})
    finally:
        sys.path.pop(0)
        for part in PARTS:
            sys.modules.pop(f"reference_{part}", None)


def count(scripts, build, size):
    return scripts.networks.count(build().to("meta"), (1, 3, size, size))


@pytest.mark.parametrize(
    ("name", "params", "folded", "macs"),
    [
        ("ResNet-50", 25_557_032, 25_530_472, 4_089_184_256),
        ("ResNet-50 v1", 25_557_032, 25_530_472, 3_857_973_248),
        ("ResNet-18", 11_689_512, 11_684_712, 1_814_073_344),
        ("MobileNetV2", 3_504_872, 3_487_816, 300_774_272),
        ("SSD-MobileNet-v1", 6_819_839, 6_807_167, 1_237_129_408),
        ("SSD-ResNet34", 19_972_534, 19_967_606, 216_415_931_904),
        ("RetinaNet", 37_128_876, 37_094_764, 201_208_394_752),
        ("YOLOv8n", 3_157_200, 3_151_904, 4_371_993_600),
        ("YOLO11n", 2_624_080, 2_616_248, 3_271_251_200),
        ("YOLO11s", 9_458_752, 9_443_760, 10_794_880_000),
        ("YOLO11m", 20_114_688, 20_091_712, 34_052_224_000),
    ],
)
def test_counts_are_those_of_the_published_network(scripts, name, params, folded, macs):
    reference = scripts.networks.NETWORKS[name]
    got = count(scripts, reference.build, reference.size)
    assert (got.params, got.folded, got.macs) == (params, folded, macs)
    if reference.published is not None:
        millions, gmac = reference.published
        assert min(abs(n / 1e6 / millions - 1) for n in (got.params, got.folded)) < 0.005
        # some are given as operations with one decimal
        assert got.macs / 1e9 == pytest.approx(gmac, rel=0.005, abs=0.025)


def test_retinanet_with_torchvisions_backbone_and_classes_has_its_published_counts(scripts):
    got = count(scripts, lambda: scripts.retinanet.RetinaNet(91, width=64, groups=1), 800)
    frozen = 2 * (got.params - got.folded)  # torchvision counts no parameter of a frozen norm
    assert got.params - frozen == 34_014_999
    assert got.macs / 1e9 == pytest.approx(151.54, abs=0.005)


@pytest.mark.parametrize(
    ("name", "logits", "boxes"),
    [
        ("SSD-MobileNet-v1", (1, 1917, 91), (1, 1917, 4)),
        ("SSD-ResNet34", (1, 81, 15130), (1, 4, 15130)),
        ("RetinaNet", (1, 120087, 264), (1, 120087, 4)),
        ("OWL-ViT-B/32", (1, 576, 512), (1, 576, 4)),
    ],
)
def test_as_many_anchors_as_the_reference(scripts, name, logits, boxes):
    reference = scripts.networks.NETWORKS[name]
    network = reference.build().eval().to("meta")
    found = network(torch.empty(reference.shape, device="meta"))
    assert [tuple(x.shape) for x in found] == [logits, boxes]


@pytest.mark.parametrize("name", ["YOLOv8n", "YOLO11m"])
def test_yolo_gives_a_box_and_a_score_of_each_class_at_every_place(scripts, name):
    network = scripts.export.randomise(scripts.yolo.Yolo(name, 64))
    with torch.no_grad():
        bins = torch.arange(float(scripts.yolo.BINS))
        network.decode.mean.weight.copy_(bins.reshape(1, -1, 1, 1))
        found = network(torch.zeros(1, 3, 64, 64))
    assert found.shape == (1, 84, 64 + 16 + 4)
    boxes, scores = found[0, :4], found[0, 4:]
    assert 0 <= float(scores.min()) <= float(scores.max()) <= 1
    near, far = boxes[:2] - boxes[2:] / 2, boxes[:2] + boxes[2:] / 2
    centres, strides = network.decode.centres[0], network.decode.strides[0]
    inside = (near <= centres * strides) & (far >= centres * strides)
    assert torch.all(inside)
    assert torch.all(far - near <= 2 * (scripts.yolo.BINS - 1) * strides)


@pytest.mark.parametrize(("extent", "stride"), [(10, 2), (9, 2), (10, 1), (5, 3)])
def test_same_padding_is_tensorflows(scripts, extent, stride):
    """The k-th window starts at k * stride - floor(total / 2), what it lacks is zero."""
    layer = scripts.ssd.SameConvolution(1, 1, 3, stride, bias=False)
    torch.nn.init.ones_(layer.weight)
    x = torch.rand(1, 1, 1, extent)
    windows = math.ceil(extent / stride)
    before = max((windows - 1) * stride + 3 - extent, 0) // 2
    expected = [
        sum(float(x[0, 0, 0, i]) for i in range(s, s + 3) if 0 <= i < extent)
        for s in (k * stride - before for k in range(windows))
    ]
    np.testing.assert_allclose(layer(x)[0, 0, 0].tolist(), expected, rtol=1e-6)


@pytest.mark.soak
def test_resnet50_of_64_pixels_becomes_a_file(scripts, tmp_path, monkeypatch, capsys):
    small = scripts.networks.Reference(
        "ResNet-50", scripts.resnet.resnet50, 64, ("logits",), None, "none at this size"
    )
    monkeypatch.setitem(scripts.networks.NETWORKS, "ResNet-50", small)
    arguments = [str(tmp_path / "out"), "--network", "ResNet-50", "--opset", "17"]
    assert scripts.networks.main(arguments) == 0
    path = tmp_path / "out" / "resnet-50_64.onnx"
    assert capsys.readouterr().out.strip() == str(path)
    about = json.loads(path.with_suffix(".json").read_text())
    model = onnx.load(path)
    assert opset_of(model) == 17
    assert (
        sum(math.prod(i.dims) for i in model.graph.initializer if i.data_type == 1)
        == (about["params_folded"])
    )
    logits = cpu_session(path).run(None, {"image": np.ones((1, 3, 64, 64), np.float32)})[0]
    assert logits.shape == (1, 1000)
    assert 0.01 < logits.std() < 1000  # neither dead nor beyond float16
    assert "1001" in about["differences"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["resnet-50_64.json", path.name]


@pytest.fixture(scope="module")
def detector(scripts, tmp_path_factory):
    """A small SSD-MobileNet and the file that it was written to."""
    path = tmp_path_factory.mktemp("detector") / "small.onnx"
    network = scripts.export.randomise(scripts.ssd.SsdMobileNet(classes=3))
    scripts.export.write_onnx(network, path, (1, 3, 96, 96), ("logits", "boxes"))
    return network, onnx.load(path)


def test_a_detector_becomes_a_file_with_two_outputs_and_tensorflows_paddings(detector):
    _, model = detector
    assert [o.name for o in model.graph.output] == ["logits", "boxes"]
    attributes = [a for n in model.graph.node if n.op_type == "Conv" for a in n.attribute]
    assert (0, 0, 1, 1) in {tuple(a.ints) for a in attributes if a.name == "pads"}
    assert not any(n.op_type in ("Pad", "BatchNormalization") for n in model.graph.node)


def test_a_file_that_differs_from_pytorch_is_refused(scripts, detector):
    network, model = detector
    changed = copy.deepcopy(network)
    torch.nn.init.ones_(changed.boxes[0].bias)
    scripts.export._prove_same(model, network, (1, 3, 96, 96))
    with pytest.raises(scripts.export.KDError) as caught:
        scripts.export._prove_same(model, changed, (1, 3, 96, 96))
    assert caught.value.code == "export-failed"
    assert "pip install" in caught.value.fix


def test_every_network_says_how_it_differs(scripts):
    assert scripts.networks.DIFFERENCES.keys() == scripts.networks.NETWORKS.keys()
