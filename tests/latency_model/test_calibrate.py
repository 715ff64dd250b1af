"""`targets calibrate`: its networks, how they are measured, and what becomes of the result."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import onnx
import pytest
from click.testing import CliRunner
from documents import check_document
from near_place import NearGpu

from kdcompile import targets
from kdcompile.cli import cli
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.latency_model import calibrate, microbench_timing
from kdcompile.latency_model.device_check import check_device, difference, mode_of
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.microbench import SIDES, Chain, chains, convert, model_of
from kdcompile.latency_model.microbench_timing import Case, TimedNetwork, cases, measure
from kdcompile.latency_model.parameters import Efficiencies, efficiencies_of
from kdcompile.latency_model.predict import kernel_ms
from kdcompile.remote.open import evidence_of, facts_of, open_place
from kdcompile.targets import user

SMALL = (
    Chain("conv", (1, 8, 12, 12), 8, layers=2),
    Chain("pool", (1, 8, 12, 12), 8, layers=1, size=2, stride=2),
    Chain("gemm", (1, 16, 1, 1), 8, layers=2),
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty configuration folder of the user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def board_at(place, target):
    about = place.about
    label, evidence = place.label, evidence_of(about, target, place.label)
    return Board(None, about["backend"], label, facts_of(about), evidence)


# the networks


def test_the_set_is_named_once_and_spans_every_kind_early():
    for kind in SIDES:
        known = chains(kind)
        assert 40 <= len(known) <= 60
        assert len({chain.name for chain in known}) == len(known)
        first = {chain.kind for chain in known[:14]}
        assert first == {chain.kind for chain in known}, "a short measurement sees every kind"
    assert {chain.shape[1] for chain in chains("cpu") if chain.kind == "conv"} >= {3, 8, 64, 256}


def test_every_network_is_of_its_kind():
    counted = Counter()
    for chain in chains("cpu"):
        model = model_of(chain)
        onnx.checker.check_model(model, full_check=True)
        kinds = [kernel.kind for kernel in kernels_of(model, chain.shape)]
        counted.update(set(kinds))
        if chain.kind in ("pool", "resize", "pointwise"):
            assert set(kinds) == {chain.kind}
            assert len(kinds) == (1 if chain.kind == "pointwise" else chain.layers)
        elif chain.kind in ("conv", "depthwise", "transposed", "gemm"):
            assert len(kinds) == chain.layers
    wanted = {"conv", "depthwise", "grouped", "dilated", "transposed", "gemm", "attention"}
    assert wanted | {"pool", "resize", "pointwise"} <= set(counted)


@pytest.mark.parametrize("form", ["fp16", "bf16", "int8"])
def test_a_network_in_another_form(form):
    model = convert(model_of(SMALL[0]), form)
    kernels = kernels_of(model, SMALL[0].shape)
    assert {k.input_precision for k in kernels if k.kind == "conv"} == {form}


def test_what_there_is_not_is_an_error():
    with pytest.raises(ValueError, match="fp8"):
        convert(model_of(SMALL[0]), "fp8")
    with pytest.raises(ValueError, match="lstm"):
        model_of(Chain("lstm", (1, 8, 4, 4), 8))


# measuring


def test_this_cpu_is_measured_and_left_clean():
    target, told = targets.load("cpu"), []
    with open_place(None, "onnxruntime") as place:
        board = board_at(place, target)
        wanted = cases(SMALL, target)
        found = measure(place, board, target, wanted, 1.0, told.append, clock=lambda: 0.0)
    assert [row.name for row in found.timed] == [
        f"{chain.name}_{precision}" for chain in SMALL for precision in ("fp32", "int8")
    ]
    for row in found.timed:
        assert len(row.samples) >= 2 * microbench_timing.TURNS
        assert 0 < min(row.samples) <= row.ms <= sorted(row.samples)[len(row.samples) // 2]
    quantised = [k.input_precision for row in found.timed[1::4] for k in row.kernels if k.macs]
    assert set(quantised) == {"int8"}
    assert not found.refused
    assert not found.left_out
    assert "building 1 of 6" in told[0]
    assert "turn" in told[-1]


@pytest.mark.parametrize("version", ["8.6.1", "10.13.3"])
def test_a_gpu_is_measured_and_left_clean(version, tmp_path):
    target = targets.load("h100").with_backend(version)
    remote_files = NearGpu(version, tmp_path / "there")
    with remote_files.open() as place:
        found = measure(place, board_at(place, target), target, cases(SMALL[:1], target), 5.0)
    by_name = {row.precision: row for row in found.timed}
    able = set(target.precisions) & set(place.about["precisions"]) - {"fp8"}
    assert set(by_name) == able >= {"fp32", "fp16", "int8"}
    for precision, row in by_name.items():
        computed = {k.input_precision for k in row.kernels if k.macs}
        assert computed == {precision}, "of the file, or of the builder's flags"
        assert row.mode == "graph"
    left = {path.name for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert left <= {"timing.cache"}


def test_what_the_device_refuses_is_told_and_the_rest_measured(tmp_path):
    def change(scene):
        scene.refuses = lambda plan: "no int8 here" if "INT8" in plan.flags else ""

    target = targets.load("h100").with_backend("8.6.1")
    with NearGpu("8.6.1", tmp_path / "there", change).open() as place:
        found = measure(place, board_at(place, target), target, cases(SMALL[:1], target), 5.0)
    assert {row.precision for row in found.timed} >= {"fp32", "fp16"}
    assert list(found.refused) == [f"{SMALL[0].name}_int8"]
    assert "no int8 here" in found.refused[f"{SMALL[0].name}_int8"]


def test_a_device_that_refuses_everything(tmp_path):
    def change(scene):
        scene.refuses = lambda plan: "out of order"

    target = targets.load("h100").with_backend("8.6.1")
    with NearGpu("8.6.1", tmp_path / "there", change).open() as place:
        board = board_at(place, target)
        with pytest.raises(KDError, match="out of order") as caught:
            measure(place, board, target, cases(SMALL[:1], target), 5.0)
    assert caught.value.code == "calibrate-nothing"
    assert "kdcompile doctor --via" in caught.value.fix


def test_time_is_kept(tmp_path):
    """Three seconds a network, ten in all: three are built, and each has its turns."""
    now = iter(range(0, 3000, 3))
    target = targets.load("h100").with_backend("8.6.1")
    with NearGpu("8.6.1", tmp_path / "there").open() as place:
        board = board_at(place, target)
        found = measure(place, board, target, cases(SMALL, target), 10.0, clock=lambda: next(now))
    assert len(found.timed) == 3
    names = [case.name(p) for case in cases(SMALL, target) for p in ("fp32", "fp16", "int8")]
    tried = {row.name for row in found.timed}
    assert not tried & set(found.left_out)
    assert set(names) <= tried | set(found.left_out)
    assert all(row.samples for row in found.timed)


def test_the_lower_quartile_and_what_shows_a_busy_device():
    calm = TimedNetwork("a", "a", "fp32", [], "", samples=[1.0, 1.0, 1.0, 1.1, 1.1])
    busy = TimedNetwork("b", "b", "fp32", [], "", samples=[1.0, 1.0, 2.0, 2.0, 9.0])
    assert (calm.ms, busy.ms) == (1.0, 1.0)
    assert busy.spread == 1.0
    lost = TimedNetwork("c", "c", "fp32", [], "", samples=[1.0, 4.0, 4.0, 4.0, 4.1])
    late = TimedNetwork("d", "d", "fp32", [], "", samples=[1.0, 1.0, 3.0, 4.0, 4.1])
    times = microbench_timing.Times([calm, busy, lost, late], {}, [])
    assert times.noisy == ["b", "d"]
    assert [row.name for row in times.undisturbed] == ["a", "b"], "none of the other two is its own"


# the right device

GPU = {
    "backend": "tensorrt", "backend_version": "10.3.0", "module": None, "power_mode": None,
    "platform": "linux x86_64", "memory_mb": {"total": None, "free": None},
}  # fmt: skip


def about(name, capability, **more):
    return {**GPU, "gpu": {"name": name, "compute_capability": capability}, **more}


ORIN = about(
    "Orin", "8.7", module="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    power_mode="NV Power Mode: MODE_15W 0", memory_mb={"total": 7620, "free": 5000},
)  # fmt: skip


@pytest.mark.parametrize(
    ("target", "name", "capability"),
    [
        ("h100", "NVIDIA H100 80GB HBM3", "9.0"),
        ("l4", "NVIDIA L4", "8.9"),
        ("rtx-4090", "NVIDIA GeForce RTX 4090", "8.9"),
        ("t4", "Tesla T4", "7.5"),
    ],
)
def test_the_card_itself(target, name, capability):
    check_device(about(name, capability), targets.load(target), "here")


@pytest.mark.parametrize(
    ("target", "name", "capability", "right"),
    [
        ("h100", "NVIDIA H200", "9.0", "no target is this device"),
        ("h100", "NVIDIA H100 PCIe", "9.0", "no target is this device"),
        ("l4", "NVIDIA GeForce RTX 4090", "8.9", "kdcompile targets calibrate rtx-4090"),
        ("rtx-4090", "NVIDIA L4", "8.9", "kdcompile targets calibrate l4"),
        ("rtx-4090", "NVIDIA GeForce RTX 4090 Laptop GPU", "8.9", "no target is this device"),
        ("t4", "NVIDIA H100 80GB HBM3", "9.0", "kdcompile targets calibrate h100"),
    ],
)
def test_another_card_is_refused_and_the_right_target_named(target, name, capability, right):
    with pytest.raises(KDError) as caught:
        check_device(about(name, capability), targets.load(target), "here")
    assert caught.value.code == "board-mismatch"
    assert right in caught.value.fix


def test_a_board_in_its_mode():
    check_device(ORIN, targets.load("jetson-orin-nano-8gb@15W"), "ssh://orin")
    assert difference(ORIN, targets.load("jetson-orin-nx-8gb"))


def test_another_power_mode_is_refused_with_the_name_that_fits():
    with pytest.raises(KDError) as caught:
        check_device(ORIN, targets.load("jetson-orin-nano-8gb@MAXN_SUPER"), "ssh://orin")
    assert caught.value.code == "calibrate-mode"
    fix = caught.value.fix
    assert "kdcompile targets calibrate jetson-orin-nano-8gb@15W" in fix
    check_device(ORIN, targets.load(fix.split()[3].rstrip(",")), "ssh://orin")


@pytest.mark.parametrize(
    ("said", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER 2", "MAXN_SUPER"),
        ("NV Power Mode: MODE_15W_6CORE 0", "15W"),
        ("NV Power Mode: 25W 1", "25W"),
        ("NV Power Mode: 7W 3", None),
        (None, None),
    ],
)
def test_modes_as_nvpmodel_words_them(said, mode):
    assert mode_of({"power_mode": said}, targets.load("jetson-orin-nano-8gb")) == mode


def test_a_cpu_does_not_stand_for_a_board():
    with pytest.raises(KDError) as caught:
        check_device({**GPU, "gpu": None}, targets.load("jetson"), "here")
    assert caught.value.code == "calibrate-place"
    assert "--via ssh://BOARD" in caught.value.fix
    check_device({**GPU, "gpu": None}, targets.load("cpu"), "here")


# the whole


@pytest.fixture
def short(monkeypatch):
    """Three networks, a fit that makes every efficiency a tenth better, and a clock that stands.

    Each inference is run, and was as long as the last: how busy this machine is decides nothing.
    """
    given, run = {}, microbench_timing._run

    def steady(place, row, iterations, warmup):
        return [1.0 + len(row.name) / 100 for _ in run(place, row, iterations, warmup)]

    def fit(observations, prior):
        given.update(observations=observations, prior=prior)
        values = {name: 1.1 * value for name, value in prior.values.items()}
        return Efficiencies(values, prior.covariance, 0.2, "fake")

    monkeypatch.setattr(calibrate, "chains", lambda kind: SMALL)
    monkeypatch.setattr(microbench_timing, "MOST_ITERATIONS", 2)
    monkeypatch.setattr(microbench_timing, "_run", steady)
    monkeypatch.setattr(calibrate, "measure", partial(measure, clock=lambda: 0.0))
    monkeypatch.setattr(calibrate, "LEAST_OBSERVATIONS", 2 * len(SMALL))
    monkeypatch.setattr(calibrate, "fit", fit)
    return given


def test_the_result_is_what_the_target_then_has(short):
    shipped = targets.load("cpu")
    found = calibrate.calibrate("cpu", seconds=1.0)
    observed = short["observations"]
    assert short["prior"] == efficiencies_of(shipped)
    assert {o.precision for o in observed} == {"fp32", "int8"}
    assert {o.network for o in observed} == {chain.name for chain in SMALL}
    active = targets.load("cpu")
    assert found.path == user.path("cpu")
    assert active.calibration["values"] == {k: 1.1 * v for k, v in short["prior"].values.items()}
    assert efficiencies_of(active).residual == 0.2
    kept = user.read_whole("cpu")["observations"]
    assert [(row["name"], row["ms"]) for row in kept] == [(o.name, o.ms) for o in observed]
    for row, error in zip(kept, found.after, strict=True):
        assert row["predicted_ms"] / row["ms"] - 1 == pytest.approx(error)
    assert found.before != found.after


def test_it_does_not_build_upon_itself(short):
    calibrate.calibrate("cpu", seconds=1.0)
    first = targets.load("cpu").calibration["values"]
    calibrate.calibrate("cpu", seconds=1.0)
    assert targets.load("cpu").calibration["values"] == first


def test_a_broken_calibration_is_replaced(short):
    path = user.path("cpu")
    path.parent.mkdir(parents=True)
    path.write_text("values = [")
    with pytest.raises(KDError, match="calibration of cpu"):
        targets.load("cpu")
    calibrate.calibrate("cpu", seconds=1.0)
    assert targets.load("cpu").calibration["target"] == "cpu"


def test_an_interruption_leaves_the_old_calibration(short, monkeypatch):
    calibrate.calibrate("cpu", seconds=1.0)
    before = user.path("cpu").read_bytes()

    def stopped(observations, prior):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        calibrate.calibrate("cpu", seconds=1.0)
    assert user.path("cpu").read_bytes() == before
    assert [path.name for path in user.path("cpu").parent.iterdir()] == ["cpu.toml"]


def test_too_few_latencies_are_no_calibration(short, monkeypatch):
    monkeypatch.setattr(calibrate, "LEAST_OBSERVATIONS", 7)
    with pytest.raises(KDError, match="latencies were measured undisturbed") as caught:
        calibrate.calibrate("cpu", seconds=1.0)
    assert caught.value.code == "calibrate-few"
    assert "--seconds 600" in caught.value.fix
    assert not user.path("cpu").exists()


def test_a_gpu_is_calibrated_at_its_place(short, tmp_path):
    remote_files = NearGpu("8.6.1", tmp_path / "there")
    found = calibrate.calibrate("h100", "python:/x", 5.0, opener=remote_files.open)
    table = found.table
    assert (table["backend"], table["backend_version"]) == ("tensorrt", "8.6.1")
    assert table["machine"] == "NVIDIA H100 80GB HBM3"
    assert {o.target.backend for o in short["observations"]} == {"8.6.1"}
    assert targets.load("h100").calibration["values"] == table["values"]


def test_another_gpu_is_refused_before_anything_is_built(short, tmp_path):
    remote_files = NearGpu("8.6.1", tmp_path / "there", name=b"NVIDIA H200")
    with pytest.raises(KDError) as caught:
        calibrate.calibrate("h100", None, 5.0, opener=remote_files.open)
    assert caught.value.code == "board-mismatch"
    assert not remote_files.counts["build"]
    assert not user.path("h100").exists()


def test_what_could_not_be_kept_is_not_measured(short, tmp_path, monkeypatch):
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "a_file"))
    remote_files = NearGpu("8.6.1", tmp_path / "there")
    with pytest.raises(KDError) as caught:
        calibrate.calibrate("h100", None, 5.0, opener=remote_files.open)
    assert caught.value.code == "calibrate-unwritable"
    assert caught.value.where == str(user.path("h100"))
    assert not remote_files.counts["build"]


def test_errors_are_of_latencies_as_they_were_enqueued():
    """One by one each kernel takes longer than in a graph: the prediction knows."""
    target = targets.load("h100")
    kernels = kernels_of(model_of(SMALL[0]), SMALL[0].shape)
    shipped = efficiencies_of(target)
    rows = [
        TimedNetwork(mode, "n", "fp32", kernels, "", mode, samples=[1.0])
        for mode in ("graph", "device")
    ]
    graph, device = calibrate._errors(calibrate._observations(rows, target), shipped)
    stream = 1e-3 * shipped.values["stream"]
    assert device - graph == pytest.approx(len(kernels) * stream)
    assert 1 + graph == pytest.approx(kernel_ms(kernels, target, "fp32", shipped))


def test_any_time_may_be_given(tmp_path):
    target = targets.load("h100").with_backend("8.6.1")
    with NearGpu("8.6.1", tmp_path / "there").open() as place:
        board = board_at(place, target)
        found = measure(place, board, target, cases(SMALL[:1], target), float("inf"))
    most = microbench_timing.TURNS * microbench_timing.MOST_ITERATIONS
    assert {len(row.samples) for row in found.timed} == {most}


def test_notes_of_what_a_reader_must_know():
    busy = [TimedNetwork(str(i), "n", "fp32", [], "", samples=[1, 1, 2, 2, 2]) for i in range(4)]
    (left, vary) = calibrate._notes(microbench_timing.Times(busy, {}, ["more"]), 30.0)
    assert "30 s were enough for 4 networks; 1 were left out" in left
    assert "4 of 4 latencies vary by over a fifth, and 0 by so much" in vary
    target = targets.load("jetson-orin-nano-8gb@15W")
    slow = {"clocks": {"17000000.gpu": 306000000}, "power_mode": "NV Power Mode: 7W 3"}
    clock, mode = calibrate._clock_notes(slow, target)
    assert "306 MHz" in clock
    assert "jetson_clocks" in clock
    assert "7W" in mode
    right = {"clocks": {"gpu": int(1e6 * target.gpu_mhz)}, "power_mode": None}
    assert calibrate._clock_notes(right, target) == []


def test_the_command(short):
    run = CliRunner()
    done = run.invoke(cli, ["targets", "calibrate", "cpu", "--seconds", "1", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    check_document("targets calibrate", found)
    assert found["path"] == str(user.path("cpu"))
    assert set(found["before"]) == {"median", "worst"}
    assert "building 1 of 6" in done.stderr
    done = run.invoke(cli, ["targets", "calibrate", "cpu", "--seconds", "1"])
    assert "before: median error" in done.stdout
    assert f"wrote {user.path('cpu')}" in done.stdout
    assert run.invoke(cli, ["targets", "calibrate", "cpu", "--seconds", "0"]).exit_code == 2


def test_the_real_fit_brings_predictions_nearer(monkeypatch):
    """Latencies of a device whose efficiencies are known: the fit has to find them."""
    target = targets.load("cpu")
    shipped = efficiencies_of(target)
    factor = {"arithmetic": 0.5, "dram": 0.6, "launch": 2.0}
    values = {name: value * factor.get(name, 1.0) for name, value in shipped.values.items()}
    real = Efficiencies(values, shipped.covariance, 0.01, "real")
    rows, wide = [], replace(target, channel_tile=16)
    for chain in chains("cpu"):
        kernels = kernels_of(model_of(chain), chain.shape)
        ms = kernel_ms(kernels, wide, "fp32", real)
        rows.append(TimedNetwork(chain.name, chain.name, "fp32", kernels, "", samples=[ms]))
    times = microbench_timing.Times(rows, {}, [])
    user.path("cpu").parent.mkdir(parents=True)
    board = Board(None, "onnxruntime", "here", {**GPU, "gpu": None}, "host")
    found = calibrate._fitted(target, board, None, {"clocks": {}}, times, ())
    assert calibrate.summary(found.after)["median"] < 0.1
    assert calibrate.summary(found.after)["median"] < calibrate.summary(found.before)["median"] / 3
    active = targets.load("cpu")
    assert active.channel_tile == 16, (
        "the vector of that device, which the shipped file does not know"
    )
    assert active.sources["channel_tile"].startswith("measured: kdcompile targets calibrate")


def test_cases_keep_within_what_the_target_reads():
    target = targets.load("cpu")
    case = cases(SMALL, target)[0]
    assert isinstance(case, Case)
    assert case.make().ir_version <= min(target.ir_version, 8)
    assert case.make().opset_import[0].version <= target.max_opset
