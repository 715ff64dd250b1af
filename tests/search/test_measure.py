"""Untrained students timed beside their teacher: here, at a worker, and at a played TensorRT."""

import copy
import functools
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from near_place import NearGpu
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from kdcompile import targets
from kdcompile.config.spec import Budget, Spec
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.latency_model.predict import Estimate
from kdcompile.remote.open import facts_of, open_place
from kdcompile.search import device_timer
from kdcompile.search import on_device as measuring
from kdcompile.search.on_device import Measurement, apply_measurement, measure, nearest_to_budget
from kdcompile.search.pareto import Point
from kdcompile.tasks.metric import MAE

CPU = targets.load("cpu")


def net(width=8, layers=2):
    body = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(layers - 1):
        body += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.Conv2d(width, 1, 1))


def spec(size=16, **sections):
    values = {
        "teacher": {"model": "model.py:build", "weights": "w.safetensors"},
        "data": {"format": "npz", "root": "."},
        "export": {"shape": [1, 3, size, size]},
    }
    return Spec(**values, **sections)


def point(ms, quality, name="p", **more):
    latency = Estimate(ms, ms / 1.5, ms * 1.5, False, "fp32", {"arithmetic": ms})
    return Point({"family": name}, latency, quality, 1.0, "blocks", int(1e9 * ms), 10, **more)


def written(module, path, shapes, max_opset, ir_version, output):
    """The file of a `net`, in place of torch's exporter, which takes seconds."""
    value, nodes, weights, last = helper.make_tensor_value_info, [], [], "image"
    for number, layer in enumerate(module):
        name, more = f"n{number}", []
        if isinstance(layer, nn.Conv2d):
            for kind, tensor in (("w", layer.weight), ("b", layer.bias)):
                array = np.ascontiguousarray(tensor.detach().numpy())
                weights.append(numpy_helper.from_array(array, f"{name}{kind}"))
            more = [f"{name}w", f"{name}b"]
        operator = "Conv" if more else "Relu"
        extra = {"pads": [layer.padding[0]] * 4} if more else {}
        nodes.append(helper.make_node(operator, [last, *more], [name], name, **extra))
        last = name
    ports = [value(n, TensorProto.FLOAT, s) for n, s in (("image", shapes[1]), (last, None))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    imports = [helper.make_opsetid("", max_opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path)
    return model


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "onnx_from_module", written)


TEACHER = point(10.0, 70.0, "teacher")


@pytest.fixture
def ticking(monkeypatch):
    """A clock that an inference of a real session moves on by a microsecond for each weight."""
    now, open_session = [0.0], device_timer.open_session

    def opened(path):
        runner = open_session(path)
        weights = sum(math.prod(w.dims) for w in onnx.load(path).graph.initializer)

        def run(image):
            now[0] += 1e-6 * weights
            return runner(image)

        return run

    monkeypatch.setattr(device_timer, "open_session", opened)
    clocked = functools.partial(device_timer.measure, clock=lambda: now[0])
    monkeypatch.setattr(device_timer, "measure", clocked)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_here_a_wider_student_takes_longer(tmp_path, precision, quick, ticking):
    students = [net(4), net(48, 6), net(4)]
    found = measure(net(64, 6), students, precision, spec(48), CPU, None, tmp_path)
    assert (found.precision, found.teacher_precision) == (precision, "fp32")
    assert found.why == (None, None, None)
    small, wide, same = found.ms
    assert wide > 3 * small
    assert same == pytest.approx(small)
    assert found.teacher_ms > 3 * small
    assert (found.label, found.mode) == ("this machine", "wall")
    assert isinstance(found.to_json()["ms"], tuple)


def test_a_student_by_the_real_exporter_stays_as_it_is(tmp_path):
    student = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)).train()
    before = copy.deepcopy(student.state_dict())
    found = measure(student, [student], "fp32", spec(), CPU, None, tmp_path)
    assert found.ms[0] > 0
    assert student.training
    assert all((before[name] == value).all() for name, value in student.state_dict().items())


def test_a_student_that_cannot_be_exported_leaves_the_others(tmp_path, monkeypatch):
    def failing(module, *rest):
        if len(module) == 1:
            raise KDError("export-failed", "it reads values")
        return written(module, *rest)

    monkeypatch.setattr(measuring, "onnx_from_module", failing)
    students = [nn.Sequential(nn.ReLU()), net(4)]
    found = measure(net(), students, "fp32", spec(), CPU, None, tmp_path)
    assert (found.ms[0], found.why) == (None, ("it reads values", None))
    assert found.ms[1] > 0
    with pytest.raises(KDError) as error:
        measure(students[0], [net()], "fp32", spec(), CPU, None, tmp_path)
    assert error.value.code == "export-failed"  # nothing is learnt without the teacher


def test_nothing_that_can_be_timed(tmp_path, gpu):
    board, target = gpu()
    bare = nn.Sequential(nn.ReLU())  # int8 quantises no layer of it
    with pytest.raises(KDError) as error:
        measure(net(), [bare], "int8", spec(), target, board, tmp_path)
    assert error.value.code == "measure-none"
    assert "no layer to quantise" in error.value.message
    assert "--set search.measure=0" in error.value.fix


def test_this_cpu_says_nothing_of_a_jetson(tmp_path):
    jetson = targets.load("jetson")
    with pytest.raises(KDError) as error:
        measure(net(), [net()], "fp16", spec(), jetson, None, tmp_path)
    assert error.value.code == "measure-foreign"
    assert "--via ssh://USER@BOARD" in error.value.fix


def test_a_precision_that_nobody_writes(tmp_path):
    for precision in ("mixed", "bf16"):
        with pytest.raises(KDError) as error:
            measure(net(), [net()], precision, spec(), CPU, None, tmp_path)
        assert error.value.code == "measure-precision"
        assert "quantize.precision=fp16" in error.value.fix


def test_a_worker_s_onnxruntime(tmp_path, monkeypatch, quick):
    monkeypatch.setenv("KDCOMPILE_CACHE", str(tmp_path / "there"))
    with open_place(None, "onnxruntime") as place:
        board = Board(None, "onnxruntime", place.label, facts_of(place.about), "host")
    found = measure(net(32, 4), [net(4)], "fp32", spec(32), CPU, board, tmp_path)
    assert found.ms[0] > 0
    assert found.teacher_ms > 0
    assert (found.label, found.mode) == (board.label, "device")


@pytest.fixture
def gpu(tmp_path, monkeypatch, quick):
    """`gpu(version, **change)` -> (board, target), every place leading to it."""

    def make(version="8.6.1", **more):
        place = NearGpu(version, tmp_path / "there", **more)
        target = targets.load("h100").with_backend(version)
        monkeypatch.setattr("kdcompile.backends.engine.open_place", place.open)
        return place.board(target), target

    return make


@pytest.mark.parametrize("version", ["8.6.1", "10.13.3", "11.4.0"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_engines_take_turns_on_the_target(tmp_path, gpu, version, precision):
    board, target = gpu(version)
    found = measure(net(8, 4), [net(4, 2), net(4, 3)], precision, spec(), target, board, tmp_path)
    assert (found.precision, found.teacher_precision) == (precision, "fp16")
    assert found.ms[0] < found.ms[1] < found.teacher_ms
    assert found.mode == "graph"


def seen_by(monkeypatch, timer):
    """The type and shape of what the networks are timed on."""
    inputs, time = [], timer.time

    def noting(self, image):
        inputs.append((image.dtype, image.shape))
        return time(self, image)

    monkeypatch.setattr(timer, "time", noting)
    return inputs


PIXELS = {"shape": [1, 3, 16, 24], "preprocess": "in-graph"}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_networks_that_take_pixels_are_timed_on_pixels(tmp_path, precision, quick, monkeypatch):
    inputs, at = (
        seen_by(monkeypatch, device_timer.HostTimer),
        spec().model_dump() | {"export": PIXELS},
    )
    found = measure(net(), [net(4)], precision, Spec(**at), CPU, None, tmp_path)
    assert found.why == (None,)
    assert inputs == [(np.dtype(np.uint8), (1, 16, 24, 3))]
    floats = seen_by(monkeypatch, device_timer.HostTimer)
    measure(net(), [net(4)], precision, spec(16), CPU, None, tmp_path)
    assert floats == [(np.dtype(np.float32), (1, 3, 16, 16))]


def test_engines_that_take_pixels_are_built_for_pixels(tmp_path, gpu, monkeypatch):
    board, target = gpu("10.13.3")
    inputs, at = (
        seen_by(monkeypatch, device_timer.BoardTimer),
        spec().model_dump() | {"export": PIXELS},
    )
    found = measure(net(8, 4), [net(4)], "fp16", Spec(**at), target, board, tmp_path)
    assert found.ms[0] < found.teacher_ms
    assert inputs == [(np.dtype(np.uint8), (1, 16, 24, 3))]


def test_a_teacher_that_overflows_in_half_is_timed_in_single(tmp_path, gpu):
    board, target = gpu("11.4.0")
    teacher = net()
    nn.init.constant_(teacher[0].weight, 1e5)
    found = measure(teacher, [net(4)], "fp16", spec(), target, board, tmp_path)
    assert (found.precision, found.teacher_precision) == ("fp16", "fp32")


def test_another_card_says_nothing_of_the_target(tmp_path, gpu):
    board, target = gpu()
    for other in (replace(board, evidence="host"), board):
        wanted = target if other is not board else replace(target, compute_capability="8.9")
        with pytest.raises(KDError) as error:
            measure(net(), [net()], "fp16", spec(), wanted, other, tmp_path)
        assert error.value.code == "measure-foreign"


def test_another_power_mode_says_nothing_of_this_one(tmp_path, gpu, monkeypatch):
    board, target = gpu()
    monkeypatch.setattr(device_timer, "mode_of", lambda about, target: "15W")
    with pytest.raises(KDError) as error:
        measure(net(), [net()], "fp16", spec(), target, board, tmp_path)
    assert "in power mode 15W" in error.value.message


def test_an_unsteady_place_is_told(tmp_path, quick, monkeypatch, caplog):
    def times(self, image):
        return {"teacher": [8.0, 8.1, 8.0], "student0": [1.0, 2.0, 4.0]}, "wall"

    monkeypatch.setattr(device_timer.HostTimer, "time", times)
    found = measure(net(), [net()], "fp32", spec(), CPU, None, tmp_path)
    assert (found.teacher_ms, found.ms, found.variation) == (8.0, (2.0,), 0.75)
    assert "vary by 75 %" in caplog.text
    caplog.clear()
    steady = {"teacher": [8.0] * 3, "student0": [2.0] * 3}
    monkeypatch.setattr(device_timer.HostTimer, "time", lambda self, image: (steady, "wall"))
    assert measure(net(), [net()], "fp32", spec(), CPU, None, tmp_path).variation == 0
    assert "vary" not in caplog.text


def test_what_is_worth_timing_lies_next_to_the_budget():
    line = [point(ms, 100 - 5 * ms, f"p{ms}") for ms in (0.5, 1.0, 2.0, 4.0, 8.0)]
    beside = point(2.05, 90.3, "beside")
    far = point(6.0, 99.0, "far")
    chosen = nearest_to_budget([*line, beside, far], 3, Budget(speedup=5.0), TEACHER, MAE)
    assert chosen == [line[2], line[1], line[3]]
    every = nearest_to_budget([*line, beside, far], 9, Budget(speedup=5.0), TEACHER, MAE)
    assert every == [line[2], line[1], line[3], line[0], line[4], beside]
    by_macs = nearest_to_budget(line, 2, Budget(macs=2.5e9), TEACHER, MAE)
    assert by_macs == [line[2], line[1]]


def test_what_was_measured_moves_the_others():
    points = [point(ms, 80.0, f"p{ms}") for ms in (1.0, 2.0, 4.0)]
    timed = [points[0], points[2]]
    run = Measurement("fp32", "fp32", 12.0, (1.2, None), (None, "it failed"), "here", "wall", 0.01)
    renewed, teacher, correction = apply_measurement(points, TEACHER, timed, run)
    assert correction.pairs == 2  # the teacher at the same precision counts
    assert [p.measured_ms for p in renewed] == [1.2, None, None]
    assert teacher.measured_ms == 12.0
    assert 2.0 < renewed[1].ms < 2.4
    assert renewed[1].interval[1] / renewed[1].interval[0] < 1.5**2
    assert [p.architecture for p in renewed] == [p.architecture for p in points]
    other = apply_measurement(points, TEACHER, timed, replace(run, precision="int8"))[2]
    assert other.pairs == 1
