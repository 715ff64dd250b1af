"""The latency model's equations by hand, and the ways in which it must move."""

import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from kdcompile.core.errors import KDError
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.network_kind import network_kind
from kdcompile.latency_model.parameters import Efficiencies, efficiencies_of, priors
from kdcompile.latency_model.predict import estimate, kernel_ms, validated_kinds
from kdcompile.latency_model.reference_kernels import reference_kernels
from kdcompile.latency_model.roofline import GENERATIONS, L2_SHARE, lay_out, peak, times
from kdcompile.latency_model.workload import Kernel, stored_bytes, traffic
from kdcompile.targets import load

NANO = load("jetson-orin-nano-8gb")
CPU = load("cpu")
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


def conv(cin, cout, side, kernel=3, precision="fp16", kind="conv", groups=1, start="a", end="b"):
    size = BYTES[precision]
    pixels = side[0] * side[1]
    weight = cout * (cin // groups) * kernel * kernel
    return Kernel(
        name=end, kind=kind, input_precision=precision, weight_precision=precision,
        output_precision=precision, macs=pixels * weight, reads={start: cin * pixels * size},
        writes={end: cout * pixels * size}, weight_bytes=weight * size, shape=(1, cout, *side),
        in_channels=cin, out_channels=cout, kernel_size=(kernel, kernel), stride=(1, 1),
        dilation=(1, 1), groups=groups, nodes=(end,),
    )  # fmt: skip


def chain(widths, side, precision="fp16", kernel=3):
    """Convolutions that read one another."""
    pairs = pairwise(widths)
    return [
        conv(a, b, side, kernel, precision, start=f"t{i}", end=f"t{i + 1}")
        for i, (a, b) in enumerate(pairs)
    ]


def plain(**values: float) -> Efficiencies:
    """Efficiencies at which the equations are easy to do by hand."""
    prior = priors("gpu")
    easy = dict.fromkeys(prior.values, 1.0)
    easy |= {"launch": 0.2, "fill": 1020.0, "operands": 1e9, "l2": 1e-9, "exposed": 0.1}
    easy |= {f"step.{g}": 1e-9 for g in GENERATIONS}
    return replace(prior, values=easy | values)


def test_one_wave_of_tiles_costs_what_is_computed_by_hand() -> None:
    """1024 pixels by 256 channels: 8 blocks of 128 x 256, one for each of the 8 SMs."""
    layer = conv(64, 256, (32, 32), kernel=1)
    found = estimate([layer], NANO, "fp16", plain())
    rate = 16.7e12 / 8
    arithmetic = 2 * 128 * 256 * 64 / rate
    moved = 2 * (64 * 1024 + 256 * 1024 + 64 * 256)  # all from DRAM: the L2 is no faster here
    memory = moved / 102e9
    overhead = 1e-6 + 1020 / 1020e6
    by_hand = max(arithmetic, memory) + 0.1 * min(arithmetic, memory) + overhead
    assert found.ms == pytest.approx(1e3 * by_hand)
    assert found.bounds["launch"] == pytest.approx(2e-3)
    assert found.bounds["memory"] == pytest.approx(1e3 * memory)
    assert found.bounds["arithmetic"] == pytest.approx(1e2 * arithmetic)
    assert found.parts[0].bound == "memory"


def test_a_file_of_two_layers_costs_what_is_computed_by_hand() -> None:
    """A 3x3 convolution that arithmetic bounds, then a pooling that memory bounds."""
    weight = numpy_helper.from_array(np.zeros((128, 128, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["c"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    image = helper.make_tensor_value_info("x", 1, [1, 128, 64, 64])
    output = helper.make_tensor_value_info("y", 1, [1, 128, 32, 32])
    graph = helper.make_graph(nodes, "g", [image], [output], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    kernels = kernels_of(model, [1, 128, 64, 64], "fp16")
    assert [k.kind for k in kernels if k.kind != "reformat"] == ["conv", "pool"]
    parts = {p.kind: p for p in estimate(kernels, NANO, "fp16", plain(pool=0.5)).parts}
    convolution = 2 * 4 * 128 * 128 * 1152 / (16.7e12 / 8)  # 32 blocks of 128 x 128 over 8 SMs
    tensor = 2 * 128 * 64 * 64
    memory = (2 * tensor + 2 * 128 * 1152) / 102e9
    assert parts["conv"].ms == pytest.approx(1e3 * (convolution + 0.1 * memory + 2e-6))
    assert parts["conv"].bound == "arithmetic"
    pooled = (tensor + tensor / 4) / (102e9 * 0.5)
    assert parts["pool"].ms == pytest.approx(1e3 * (pooled + 2e-6))
    assert parts["pool"].bound == "memory"


WIDTHS = st.lists(st.integers(1, 16).map(lambda n: 32 * n), min_size=2, max_size=5)
SIDES = st.tuples(st.integers(4, 96), st.integers(4, 96))
PLACES = st.sampled_from(
    [("jetson-orin-nano-8gb", "int8"), ("jetson-orin-nano-8gb", "fp16"),
     ("jetson-xavier-nx", "int8"), ("h100", "fp32"), ("cpu", "fp32")]
)  # fmt: skip
NOT_LESS = 1 - 1e-9


@settings(max_examples=60)
@given(WIDTHS, SIDES, PLACES, st.data())
def test_more_width_pixels_or_layers_never_take_less(widths, side, place, data) -> None:
    target, precision = load(place[0]), place[1]
    before = kernel_ms(chain(widths, side, precision), target, precision)
    at = data.draw(st.integers(0, len(widths) - 1))
    wider = [w + 32 * (i == at) for i, w in enumerate(widths)]
    assert kernel_ms(chain(wider, side, precision), target, precision) >= before * NOT_LESS
    larger = side[0] + data.draw(st.integers(0, 9)), side[1] + data.draw(st.integers(0, 9))
    assert kernel_ms(chain(widths, larger, precision), target, precision) >= before * NOT_LESS
    deeper = [*widths[: at + 1], *widths[at:]]
    assert kernel_ms(chain(deeper, side, precision), target, precision) > before


@settings(max_examples=40)
@given(WIDTHS, SIDES, st.floats(1.0, 3.0))
def test_more_bandwidth_or_clock_never_takes_longer(widths, side, factor) -> None:
    kernels = chain(widths, side)
    before = kernel_ms(kernels, NANO, "fp16")
    wide = replace(NANO, bandwidth_gbs=NANO.bandwidth_gbs * factor)
    peaks = {name: peak * factor for name, peak in NANO.peak_tflops.items()}
    fast = replace(NANO, gpu_mhz=NANO.gpu_mhz * factor, peak_tflops=peaks)
    cached = replace(NANO, l2_mb=NANO.l2_mb * factor)
    for better in (wide, fast, cached):
        assert kernel_ms(kernels, better, "fp16") <= before / NOT_LESS


@settings(max_examples=40)
@given(WIDTHS, SIDES, PLACES)
def test_bounds_and_parts_add_up_and_the_interval_holds_the_median(widths, side, place) -> None:
    target, precision = load(place[0]), place[1]
    kernels = chain(widths, side, precision)
    found = estimate(kernels, target, precision)
    assert sum(found.bounds.values()) == pytest.approx(found.ms)
    assert sum(part.ms for part in found.parts) == pytest.approx(found.ms)
    assert kernel_ms(kernels, target, precision) == pytest.approx(found.ms)
    assert 0 < found.low_ms < found.ms < found.high_ms < math.inf
    assert asdict(found)["parts"][0]["bound"] in ("arithmetic", "memory", "launch")


def test_channels_off_the_alignment_cost_the_arithmetic_of_the_next() -> None:
    def arithmetic(width: int, precision: str) -> float:
        layer = conv(width, 256, (64, 64), 3, precision)
        return estimate([layer], NANO, precision, plain(exposed=1e-9)).bounds["arithmetic"]

    assert arithmetic(225, "fp16") == pytest.approx(arithmetic(256, "fp16"))
    assert arithmetic(224, "fp16") < arithmetic(225, "fp16")  # 64 bytes of a tap
    assert arithmetic(193, "int8") == pytest.approx(arithmetic(256, "int8"))
    assert arithmetic(192, "int8") < arithmetic(193, "int8")
    assert arithmetic(3, "int8") == pytest.approx(arithmetic(4, "int8"))
    assert arithmetic(4, "int8") < arithmetic(5, "int8")


def test_a_tensor_that_stays_in_l2_is_read_faster() -> None:
    small, large = (
        chain([32, 32, 32], (32, 32), kernel=1),
        chain([32, 32, 32], (512, 512), kernel=1),
    )
    for kernels, gain in ((small, 1.3), (large, 1.0)):
        apart = [replace(k, reads={f"other{i}": v for v in k.reads.values()})
                 for i, k in enumerate(kernels)]  # fmt: skip
        values = plain(l2=64.0, launch=1e-9, fill=1e-9)
        kept, cold = (kernel_ms(k, NANO, "fp16", values) for k in (kernels, apart))
        assert cold / kept >= gain
        assert cold / kept < 3


def test_the_weights_of_a_small_network_stay_in_the_cache() -> None:
    layer = conv(256, 256, (2, 2), kernel=1)
    values = plain(l2=64.0, launch=1e-9, fill=1e-9)
    few, many = (kernel_ms([layer] * n, NANO, "fp16", values) / n for n in (2, 40))
    assert many > 1.5 * few


def test_a_narrow_int8_tensor_takes_the_memory_of_a_vector() -> None:
    """CHW32 holds 16 channels in 32; fp16 in vectors of 8, float32 as the file has it."""

    def memory(width: int, precision: str) -> float:
        layers = chain([64, width, 64], (128, 128), precision, kernel=1)
        moved = sum(traffic(layers, 0.0)[0]) - sum(k.weight_bytes for k in layers)
        return (moved / 128**2 / BYTES[precision] - 2 * 64) / 2

    assert [memory(w, "int8") for w in (3, 16, 32, 33)] == [4, 32, 32, 64]
    assert [memory(w, "fp16") for w in (12, 16)] == [16, 16]
    assert memory(13, "fp32") == 13
    indices = replace(chain([16, 3], (8, 8), "fp16")[0], output_precision="int64")
    assert stored_bytes(indices, 8 * 3 * 64) == 8 * 3 * 64  # no vectors, however few channels
    flat = replace(chain([16, 16], (8, 8), "int8")[0], kind="gemm")
    assert sum(traffic([flat], 0.0)[0]) == 2 * 16 * 64 + flat.weight_bytes
    narrow = chain([16, 16], (8, 8), "int8")
    assert sum(traffic(narrow, 0.0, vectors=False)[0]) == sum(traffic([flat], 0.0)[0])


def test_without_a_graph_each_kernel_costs_more_and_the_processor_may_be_the_bound() -> None:
    kernels = chain([64] * 11, (16, 16))
    values = plain(stream=2.0, host=1e-6).values
    graph, stream = (times(lay_out(kernels, NANO, g), values).total for g in (True, False))
    assert stream - graph == pytest.approx(10 * 2e-6)
    assert 1e3 * graph == pytest.approx(kernel_ms(kernels, NANO, "fp16", plain(stream=2.0)))
    slow = plain(host=1e3).values
    assert times(lay_out(kernels, NANO, graph=False), slow).total == pytest.approx(10 * 1e-3)
    assert times(lay_out(kernels, NANO), slow).total == pytest.approx(graph)
    of_a_cpu = lay_out(chain([8, 8], (8, 8), "fp32"), CPU, graph=False)
    assert times(of_a_cpu, priors("cpu").values).host == 0


def recurrent(steps, hidden=512, ways=1):
    """A layer of 64 inputs whose hidden units have four gates, of one sequence at fp16."""
    product = 4 * hidden * (64 + hidden)
    return Kernel(
        name="lstm", kind="recurrent", input_precision="fp16", weight_precision="fp16",
        output_precision="fp16", macs=steps * ways * product, reads={"a": 2 * steps * 64},
        writes={"b": 2 * steps * ways * hidden}, weight_bytes=2 * ways * product,
        shape=(steps, ways, 1, hidden), in_channels=64 + hidden, out_channels=4 * hidden,
        kernel_size=(), stride=(), dilation=(), groups=ways, nodes=("lstm",), steps=steps,
    )  # fmt: skip


def test_a_recurrent_layer_waits_for_each_step_and_reads_its_weights_anew() -> None:
    """20 steps: their weights, of 2.36 MB, are partly in the L2."""
    layer = recurrent(20)
    found = estimate([layer], NANO, "fp16", plain(exposed=1e-9))
    assert found.bounds["launch"] == pytest.approx(20 * 2e-3)
    held = NANO.l2_mb * 1e6 * L2_SHARE
    dram, l2 = (sum(column) for column in traffic([layer], held))
    assert dram == pytest.approx(layer.weight_bytes + 19 * (layer.weight_bytes - held) + 2560)
    assert l2 == pytest.approx(19 * held + 2 * 20 * 512)
    assert found.bounds["memory"] == pytest.approx(1e3 * (dram + l2) / 102e9)
    (part,) = found.parts
    assert (part.bound, part.known) == ("memory", True)
    assert part.ms == pytest.approx(found.ms) == pytest.approx(sum(found.bounds.values()))
    assert "recurrent layers (1) at one launch a step" in " ".join(found.notes)
    assert estimate([recurrent(20, 16)], NANO, "fp16", plain()).parts[0].bound == "launch"
    on_cpu = replace(layer, input_precision="fp32")
    peak = CPU.peak_tflops["fp32"] * 1e12
    busy = times(lay_out([on_cpu], CPU), priors("cpu").values | {"arithmetic": 1.0, "gemm": 1.0})
    assert float(busy.arithmetic[0]) == pytest.approx(2 * layer.macs / peak)


def test_steps_and_not_directions_are_one_after_another() -> None:
    def arithmetic(steps: int, ways: int) -> float:
        return estimate([recurrent(steps, 32, ways)], NANO, "fp16", plain()).bounds["arithmetic"]

    assert arithmetic(24, 1) == pytest.approx(24 * arithmetic(1, 1))
    assert arithmetic(24, 2) < 0.9 * arithmetic(48, 1)
    assert kernel_ms([recurrent(24)], NANO, "fp16") > 15 * kernel_ms([recurrent(1)], NANO, "fp16")


def test_a_cpu_that_was_not_measured_has_a_wide_interval() -> None:
    kernels = reference_kernels("CSRNet", (1, 3, 576, 768), "fp32")
    found = estimate(kernels, CPU, "fp32")
    assert found.high_ms / found.ms > 2
    assert found.ms / found.low_ms > 2


def test_depthwise_runs_on_the_vector_units() -> None:
    dense = conv(256, 256, (64, 64))
    layer = conv(256, 256, (64, 64), kind="depthwise", groups=256)
    values = plain(exposed=1e-9)
    found = estimate([layer], NANO, "fp16", values).parts[0]
    on_tensor_cores = 1e3 * 2 * layer.macs / 16.7e12
    assert found.ms > 4 * on_tensor_cores
    assert found.ms < estimate([dense], NANO, "fp16", values).ms


def test_small_groups_cost_more_than_their_multiply_adds() -> None:
    dense = conv(128, 128, (64, 64))
    layer = conv(128, 128, (64, 64), kind="grouped", groups=32)  # 4 channels each
    values = plain(exposed=1.0)  # at which both are shown in full
    whole, parted = (estimate([k], NANO, "fp16", values).bounds for k in (dense, layer))
    waste = parted["arithmetic"] / layer.macs / (whole["arithmetic"] / dense.macs)
    assert 2 < waste < 32


def test_an_unknown_operator_is_named_and_never_free() -> None:
    odd = replace(conv(64, 64, (64, 64)), kind="other", macs=0, kernel_size=(), name="Mystery")
    found = estimate([odd], NANO, "fp16")
    assert not found.parts[0].known
    assert found.parts[0].bound == "memory"
    assert any("Mystery" in note and "memory-bound" in note for note in found.notes)
    copied = estimate([replace(odd, kind="pointwise")], NANO, "fp16")
    assert found.ms > copied.ms > 0
    assert copied.parts[0].known
    assert found.high_ms / found.low_ms > copied.high_ms / copied.low_ms


def test_only_a_fixture_nearby_validates() -> None:
    kernels = reference_kernels("ResNet-50", (1, 3, 224, 224), "int8")
    agx, nx = load("jetson-agx-orin-64gb"), load("jetson-orin-nx-16gb")
    assert estimate(kernels, agx, "int8").validated
    tiny = [conv(8, 8, (8, 8), precision="int8")]
    half = [conv(256, 512, (64, 64))]
    for case in ((kernels, load("jetson@15W"), "int8"), (kernels, nx, "int8"), (half, agx, "fp16"),
                 (tiny, agx, "int8")):  # fmt: skip
        found = estimate(*case)
        assert not found.validated
        assert any(note.startswith("unvalidated") for note in found.notes)
    retina = reference_kernels("RetinaNet", (1, 3, 800, 800), "int8")
    assert estimate(retina, load("jetson-orin-nx-16gb@MAXN"), "int8").validated


def test_a_fixture_validates_its_own_kind_of_network_alone() -> None:
    shape = 1, 3, 640, 640
    nano, slow = load("jetson"), load("jetson@15W")
    yolo = reference_kernels("YOLO11n", shape, "fp16")
    assert estimate(yolo, nano, "fp16").network_kind == "detector"
    assert estimate(yolo, nano, "fp16").validated  # by YOLOv8n
    assert estimate(yolo, slow, "fp16").validated
    plain_net = reference_kernels("ResNet-50", (1, 3, 224, 224), "fp16")
    assert estimate(plain_net, nano, "fp16").validated
    found = estimate(plain_net, slow, "fp16")
    assert not found.validated
    assert any("fp16 of a convolutional network" in note for note in found.notes)
    nx = load("jetson-orin-nx-16gb@MAXN")
    assert not estimate(yolo, nx, "fp16").validated  # that of YOLO11n is a report
    assert validated_kinds(nano)["fp16"] == ("convolutional", "depthwise", "detector")
    assert validated_kinds(slow) == {
        "fp32": ("detector",), "fp16": ("detector",), "bf16": (), "int8": ("detector",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (["conv"] * 5, "convolutional"),
        (["conv"] * 2 + ["depthwise"], "depthwise"),
        (["conv"] * 9 + ["depthwise"], "convolutional"),
        (["conv", "copy", "copy", "resize", "copy"], "detector"),
        (["conv", "copy", "copy", "resize"], "convolutional"),
        (["gemm", "attention"] + ["shuffle"] * 4, "transformer"),
        (["gemm"] * 3, "convolutional"),
        (["conv", "recurrent"] + ["copy"] * 4, "recurrent"),
    ],
)
def test_the_kind_of_a_network_follows_from_its_kernels(kinds, told) -> None:
    moves = ("copy", "shuffle", "resize")
    plain_one = conv(8, 8, (8, 8))
    made = [
        replace(plain_one, kind=kind, macs=0 if kind in moves else plain_one.macs) for kind in kinds
    ]
    assert network_kind(made) == told


def test_an_uncovered_precision_is_less_certain() -> None:
    agx = load("jetson-agx-orin-64gb")

    def width(precision: str) -> float:
        found = estimate([conv(256, 256, (128, 128), precision=precision)], agx, precision)
        return found.high_ms / found.low_ms

    assert width("fp16") > width("int8")


@pytest.mark.parametrize(("capability", "group"), [("5.3", "7"), ("7.2", "7"), ("12.0", "10")])
def test_a_generation_that_was_never_measured_takes_its_neighbours(capability, group) -> None:
    odd = replace(NANO, compute_capability=capability)
    assert lay_out(chain([32, 32], (8, 8)), odd).generation == group
    assert kernel_ms(chain([32, 32], (8, 8)), odd, "fp16") > 0


def test_turing_has_nothing_of_volta() -> None:
    """Every fixture of Volta is of a Jetson, whose kernels wait for an L2 of 512 KB."""
    layers, shipped = chain([256, 256], (8, 8)), efficiencies_of(load("t4"))
    assert lay_out(layers, load("t4")).generation == "7.5"
    assert shipped.values["step.7.5"] == priors("gpu").values["step.7.5"]
    slower = replace(shipped, values=shipped.values | {"step.7": 1e5})
    before, after = (kernel_ms(layers, load("t4"), "fp16", each) for each in (shipped, slower))
    assert before == after
    xavier = load("jetson-xavier-nx")
    assert kernel_ms(layers, xavier, "fp16", slower) > kernel_ms(layers, xavier, "fp16", shipped)


@pytest.mark.parametrize(("name", "own"), [("l4", "launch.card"), ("jetson", "launch")])
def test_a_card_launches_at_a_cost_of_its_own(name: str, own: str) -> None:
    target, kernels = load(name), chain([32] * 11, (8, 8))
    for changed in ("launch", "launch.card"):
        ms = kernel_ms(kernels, target, "fp16", plain(**{changed: 0.7}))
        more = 10 * (0.7 - plain().values[changed]) * target.launch_us / 1e3
        expected = more if changed == own else 0.0
        same = kernel_ms(kernels, target, "fp16", plain())
        assert ms - same == pytest.approx(expected)


def test_a_launch_on_a_card_is_believed_to_take_half_of_a_jetsons() -> None:
    prior = priors("gpu").values
    assert prior["launch.card"] * load("l4").launch_us == pytest.approx(1.2)  # us, in a CUDA graph
    shipped = efficiencies_of(load("l4")).values
    assert 0.3 < shipped["launch.card"] / shipped["launch"] < 0.7


def test_a_broken_calibration_of_another_target_says_nothing_here(tmp_path, monkeypatch) -> None:
    from kdcompile.latency_model.predict import _sizes
    from kdcompile.targets import user
    from kdcompile.targets.fixtures import describe_gaps

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    user.path("h100").parent.mkdir(parents=True)
    user.path("h100").write_text("values = [")
    _sizes.cache_clear()
    assert estimate(chain([32, 32], (8, 8)), NANO, "fp16").ms > 0
    assert describe_gaps()


@pytest.mark.parametrize(
    ("name", "precision"), [("cpu", "fp16"), ("jetson-xavier-nx", "bf16"), ("jetson", "fp8")]
)
def test_a_precision_without_a_peak_is_refused(name: str, precision: str) -> None:
    with pytest.raises(KDError) as caught:
        kernel_ms(chain([32, 32], (8, 8)), load(name), precision)
    assert caught.value.code == "target-precision"
    assert "fp32" in caught.value.fix


def test_a_kernel_in_a_type_that_the_target_lacks_is_refused() -> None:
    with pytest.raises(KDError) as caught:
        kernel_ms(chain([32, 32], (8, 8), "fp16"), CPU, "fp32")
    assert caught.value.code == "target-precision"


def test_a_slower_power_mode_and_a_wider_type_take_longer() -> None:
    fast, slow = load("jetson"), load("jetson@15W")
    times = {
        p: kernel_ms(reference_kernels("CSRNet", (1, 3, 576, 768), p), fast, p)
        for p in ("int8", "fp16", "fp32")
    }
    assert times["int8"] < times["fp16"] < times["fp32"]
    kernels = reference_kernels("CSRNet", (1, 3, 576, 768), "int8")
    assert kernel_ms(kernels, slow, "int8") > 1.4 * times["int8"]
    quarter = reference_kernels("CSRNet-1/4", (1, 3, 576, 768), "int8")
    assert 3 < times["int8"] / kernel_ms(quarter, fast, "int8") < 15


@pytest.mark.parametrize(
    ("changed", "bytes_of_windows"),
    [
        ({}, 100 * 16 * 9),
        ({"kernel_size": (1, 1), "macs": 100 * 16 * 24}, 0),
        ({"kernel_size": (1, 1), "stride": (2, 2), "macs": 100 * 16 * 24}, 100 * 16),
        ({"groups": 2, "macs": 100 * 8 * 9 * 24}, 100 * 16 * 9),
        ({"kernel_size": (), "stride": (), "kind": "gemm", "macs": 100 * 16 * 24}, 0),
        ({"input_precision": "fp32"}, 0),
    ],
)
def test_an_int8_convolution_on_a_cpu_copies_its_windows(changed, bytes_of_windows) -> None:
    kernel = replace(conv(16, 24, (10, 10), precision="int8"), **changed)
    layout = lay_out([kernel], CPU)
    assert layout.windows.tolist() == [bytes_of_windows]
    values = priors("cpu").values
    with_copy, without = (times(n, values) for n in (layout, layout._replace(windows=np.zeros(1))))
    cache = CPU.bandwidth_gbs * 1e9 * 0.75 * 3.0  # the prior's dram and l2
    spent = float((with_copy.arithmetic - without.arithmetic)[0])
    assert spent == pytest.approx(bytes_of_windows / (cache * 0.1))
    assert not lay_out([replace(kernel, input_precision="int8")], NANO).windows.any()


def test_without_tf32_fp32_takes_longer_and_no_fixture_speaks_for_it() -> None:
    kernels = reference_kernels("ResNet-50 v1", (1, 3, 224, 224), "fp32")
    peaks = NANO.peak_tflops
    without = replace(NANO, tf32=False)
    assert peak(NANO, "fp32") == peaks["tf32"] * 1e12
    assert peak(without, "fp32") == peaks["fp32"] * 1e12
    tf32, fp32 = estimate(kernels, NANO, "fp32"), estimate(kernels, without, "fp32")
    # arithmetic bounds it: its time grows with the peaks' ratio, as far as it is arithmetic
    assert 1.5 < fp32.ms / tf32.ms < peaks["tf32"] / peaks["fp32"]
    assert (tf32.validated, fp32.validated) == (True, False)
    assert any("at fp32 without TF32 of a conv" in note for note in fp32.notes)
    halves = reference_kernels("ResNet-50 v1", (1, 3, 224, 224), "fp16")
    assert estimate(halves, NANO, "fp16") == estimate(halves, without, "fp16")
    old = load("t4")  # it has none: nothing changes there
    assert estimate(kernels, old, "fp32") == estimate(kernels, replace(old, tf32=False), "fp32")


def test_ten_thousand_networks_are_priced_in_seconds() -> None:
    from time import process_time

    kernels = reference_kernels("CSRNet", (1, 3, 576, 768), "fp16")
    begin = process_time()
    for step in range(200):
        wide = [replace(k, out_channels=16 + step + i) for i, k in enumerate(kernels)]
        kernel_ms(wide, NANO, "fp16")
    assert process_time() - begin < 200 / 10_000 * 20
