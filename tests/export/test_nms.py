"""Non-maximum suppression in the graph: ONNX Runtime gives what the task's own decode gives."""

import numpy as np
import onnx
import onnxruntime
import pytest

from kdcompile.config.detection import Head
from kdcompile.core.errors import KDError
from kdcompile.data.preprocess import Frame
from kdcompile.export.nms import with_nms
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.tasks.detection.task import Detection

PLANE = (48, 64)
FRAME = Frame((96, 128), PLANE, PLANE)


def network(shape, kind="FLOAT"):
    """One that gives its input, as the output of a detector."""
    elem = getattr(onnx.TensorProto, kind)
    ports = [onnx.helper.make_tensor_value_info(n, elem, shape) for n in ("image", "boxes")]
    node = onnx.helper.make_node("Identity", ["image"], ["boxes"])
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


def outputs_of(decoder, random, rows=120, classes=3):
    """A random output of a head: many boxes that overlap each other."""
    centre = random.uniform(8, 40, (1, rows, 2))
    size = random.uniform(6, 20, (1, rows, 2))
    scores = random.uniform(0, 1, (1, rows, classes))
    if decoder == "centre":
        logits = random.normal(-1, 2, (1, classes, 12, 16))
        return np.concatenate([logits, random.normal(0.5, 0.5, (1, 4, 12, 16))], 1)
    if decoder == "yolov8":
        return np.concatenate([centre, size, scores], 2).transpose(0, 2, 1)
    if decoder == "yolov5":
        return np.concatenate([centre, size, scores[..., :1], scores], 2)
    corners = np.concatenate([centre - size / 2, centre + size / 2], 2) / 64
    boxes = corners if decoder == "corners" else np.concatenate([centre, size], 2) / 64
    return np.concatenate([boxes, random.normal(0, 2, (1, rows, classes + 1))], 2)


CASES = [
    ("centre", {}),
    ("centre", {"lowest": 0.2, "overlap": 0.3}),
    ("yolov8", {}),
    ("yolov8", {"overlap": 0.8, "lowest": 0.4}),
    ("yolov5", {}),
    ("detr", {"overlap": 0.6}),
    ("ssd", {"scores": "sigmoid", "background": "first", "boxes": "centre", "unit": "share"}),
    ("ssd", {"scores": "softmax", "background": "none", "unit": "share", "boxes": "corners"}),
]


def both(task, output, decoder):
    """Boxes of the task's own decode, and of the graph's output by the decoder `boxes`."""
    made = with_nms(network(output.shape), decoder, task.setting(decoder), PLANE)
    onnx.checker.check_model(made, full_check=True)
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"image": output})[0]
    assert found.dtype == np.float32
    final = Detection(task.head, "boxes", count=3)
    return task.found(output, FRAME), final.found(found, FRAME), found


def assert_same(own, graph):
    assert len(own) == len(graph) > 5
    assert graph.scores == pytest.approx(own.scores, abs=1e-5)
    assert (graph.classes == own.classes).all()
    assert graph.boxes == pytest.approx(own.boxes, abs=1e-2)


@pytest.mark.parametrize(("decoder", "head"), CASES, ids=str)
def test_the_graph_gives_what_the_task_decodes(decoder, head):
    for seed in range(3):
        form = "corners" if head.get("boxes") == "corners" else decoder
        output = outputs_of(form, np.random.default_rng(seed)).astype(np.float32)
        own, graph, _ = both(Detection(Head(**head), decoder), output, decoder)
        assert_same(own, graph)


def test_offsets_from_anchors_are_boxes_too():
    random = np.random.default_rng(4)
    anchors = np.concatenate([random.uniform(8, 40, (120, 2)), random.uniform(6, 20, (120, 2))], 1)
    task = Detection(Head(scores="softmax", background="last"), "ssd", anchors=anchors)
    output = random.normal(0, 1, (1, 120, 8)).astype(np.float32)
    own, graph, _ = both(task, output, "ssd")
    assert_same(own, graph)


def test_rows_behind_the_last_box_have_no_score():
    """Few boxes, and candidates beyond the thousand best are left out as the task does."""
    output = outputs_of("yolov8", np.random.default_rng(0), rows=500).astype(np.float32)
    own, graph, rows = both(Detection(Head(), "yolov8"), output, "yolov8")
    assert rows.shape == (1, 100, 6)
    assert_same(own, graph)
    output[:, 4:] *= 0.0102
    _, graph, rows = both(Detection(Head(), "yolov8"), output, "yolov8")
    assert 0 < len(graph) == (rows[0, :, 4] > 0).sum() < 100
    assert (np.diff(rows[0, :, 4]) <= 0).all()


def test_fewer_pairs_than_boxes_are_all_there():
    output = outputs_of("yolov8", np.random.default_rng(0), rows=8, classes=1).astype(np.float32)
    _, _, rows = both(Detection(Head(), "yolov8"), output, "yolov8")
    assert rows.shape == (1, 8, 6)


def test_half_precision_outputs_become_float32():
    output = outputs_of("yolov8", np.random.default_rng(0)).astype(np.float16)
    task = Detection(Head(), "yolov8")
    made = with_nms(network(output.shape, "FLOAT16"), "yolov8", task.setting("yolov8"), PLANE)
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = Detection(Head(), "boxes", count=3).found(
        session.run(None, {"image": output})[0], FRAME
    )
    own = task.found(output.astype(np.float32), FRAME)  # in which many scores are equal
    assert len(own) == len(found)
    assert found.scores == pytest.approx(own.scores, abs=1e-5)


@pytest.mark.parametrize(
    ("decoder", "head", "why"),
    [("boxes", {}, "final"), ("detr", {}, "final"), ("own.py:f", {}, "your code")],
)
def test_heads_without_suppression_are_refused(decoder, head, why):
    own = Detection(Head(**head), decoder)
    setting = own.setting(decoder) if ":" not in decoder else own.setting("centre")
    with pytest.raises(KDError, match="export-nms") as caught:
        with_nms(network((1, 50, 8)), decoder, setting, PLANE)
    assert why in caught.value.message
    assert "leave export.nms out" in str(caught.value.fix)


def test_the_latency_model_knows_what_is_added():
    shape = (1, 7, 120)
    plain, task = network(shape), Detection(Head(), "yolov8")
    kernels = kernels_of(with_nms(plain, "yolov8", task.setting("yolov8"), PLANE), shape)
    assert sum(kernel.kind == "sort" for kernel in kernels) == 3  # two of TopK
    assert sum(kernel.kind == "sort" for kernel in kernels_of(plain, shape)) == 0
