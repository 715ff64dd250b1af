"""Measuring: order, effort, time, builds, modes, and what fails midway."""

import numpy as np
import onnx
import onnx_graphs
import pytest
from benching import CPU, GPU, Scene, noisy, subject

from kdcompile.core.errors import KDError
from kdcompile.latency.sampler import Effort, measure
from kdcompile.latency.settings import Mode
from kdcompile.latency.subject import find_subject
from kdcompile.stats.samples import samples_from_json

AB = [subject("a"), subject("b")]
FEW = Effort(processes=2, blocks=4, seconds=1000)


def run(scene, subjects=AB, effort=FEW, mode=Mode(), **more):  # noqa: B008  # frozen
    return measure(subjects, "python:played", effort, mode, tools=scene.tools(), **more)


def processes(samples):
    return [process for build in samples.runs[0].builds for process in build.processes]


def refused(code, *arguments, **options):
    with pytest.raises(KDError) as caught:
        run(*arguments, **options)
    assert caught.value.code == code
    assert caught.value.fix
    return caught.value


def test_each_side_gets_its_own_latencies_in_one_tree():
    a, b = run(Scene(ms=noisy(a=2.0, b=3.0)))
    assert [samples.name for samples in (a, b)] == ["a", "b"]
    assert a.sha256 == AB[0].sha256 == a.runs[0].builds[0].sha256
    for samples, ms in ((a, 2.0), (b, 3.0)):
        assert [len(process.blocks) for process in processes(samples)] == [4, 4]
        for block in samples.blocks():
            assert np.median(block.ms) == pytest.approx(ms, rel=0.02)
    assert samples_from_json(a.to_json()) == a


def test_blocks_alternate_and_each_process_turns_the_order():
    scene = Scene(ms=noisy(a=2.0, b=3.0))
    a, b = run(scene)
    first, second = scene.places
    iterations = first.timed[-1][1]
    order = [name for name, count in first.timed if count == iterations]
    assert order == ["side0", "side1", "side1", "side0"] * 2
    order = [name for name, count in second.timed if count == iterations]
    assert order == ["side1", "side0", "side0", "side1"] * 2
    assert (first.loads, second.loads) == (["side0", "side1"], ["side1", "side0"])
    ats = [[block.at_s for block in samples.blocks()] for samples in (a, b)]
    assert ats[0] == sorted(ats[0])
    assert ats[0][0] < ats[1][0] < ats[1][1] < ats[0][1]


@pytest.mark.parametrize(("ms", "iterations"), [(0.01, 500), (0.75, 100), (60.0, 5)])
def test_a_block_lasts_about_75_ms(ms, iterations):
    found = run(Scene(ms=lambda *_: ms), AB[:1])[0]
    assert {len(block.ms) for block in found.blocks()} == {iterations}


def test_the_slower_side_sets_the_pace_of_both():
    a, b = run(Scene(ms=lambda network, *_: {"a": 1.0, "b": 7.5}[network]))
    assert {len(block.ms) for found in (a, b) for block in found.blocks()} == {10}


def test_time_is_shared_between_processes_and_holds():
    scene = Scene(ms=lambda *_: 10.0)
    begin = scene.clock()
    found = run(scene, effort=Effort(processes=3, blocks=1000, seconds=12))[0]
    counts = [len(process.blocks) for process in processes(found)]
    assert len(counts) == 3
    assert max(counts) - min(counts) <= 2
    assert 10 < scene.clock() - begin <= 12.5


def test_where_time_is_short_processes_are_left_out_but_never_the_first(caplog):
    scene = Scene(ms=lambda *_: 400.0)
    with caplog.at_level("INFO", "kdcompile"):
        found = run(scene, effort=Effort(processes=3, blocks=20, seconds=1))
    assert [len(process.blocks) for samples in found for process in processes(samples)] == [2, 2]
    assert "the time is up after 1 of 3 processes" in caplog.text


def test_of_many_processes_so_many_run_that_half_the_time_is_measured_in():
    scene = Scene(ms=lambda *_: 10.0)
    found = run(scene, effort=Effort(processes=100, blocks=1000, seconds=20))[0]
    counts = [len(process.blocks) for process in processes(found)]
    assert 17 <= len(counts) <= 20  # of which each takes 0.5 s to start
    assert min(counts) >= 2


def test_a_warm_up_ends_when_the_latencies_are_steady():
    bursts = iter([9.0, 5.0, 4.0, 3.0, 2.0, 2.0, 2.0])

    class Cooling(Scene):
        def open(self, via, backend):
            place = super().open(via, backend)
            plain = place._time

            def time(**values):
                self.now = 9.0 if len(place.timed) < 1 else next(bursts, 2.0)
                return plain(**values)

            place._time = time
            return place

    scene = Cooling()
    scene.ms = lambda *_: scene.now
    found = run(scene, AB[:1], Effort(processes=1, blocks=3, seconds=1000))[0]
    state = found.runs[0].environment["state"]
    assert state["warmup_stable"] is True
    assert {value for block in found.blocks() for value in block.ms} == {2.0}
    assert len(scene.places[0].timed) == 1 + 7 + 3  # once, until three bursts agree, the blocks


def test_a_warm_up_that_never_settles_is_cut_and_said():
    scene = Scene(ms=noisy(share=0.0, a=1.0))
    values = iter(np.tile([1.0, 2.0], 100_000))
    scene.ms = lambda *_: float(next(values)) if len(scene.places[0].timed) % 2 else 5.0
    found = run(scene, AB[:1], Effort(processes=1, blocks=3, seconds=100))[0]
    state = found.runs[0].environment["state"]
    assert state["warmup_stable"] is False
    assert 2.0 <= state["warmup_s"][0] < 2.2


def test_a_wish_for_few_samples_is_kept_to_the_letter():
    for count, sizes in ((10, [1] * 10), (50, [3] * 10 + [2] * 10), (2, [1, 1])):
        scene = Scene()
        found = run(scene, effort=Effort(samples=count, seconds=1000))
        for samples in found:
            assert [len(block.ms) for block in samples.blocks()] == sizes
        assert len(scene.places) == 1


def test_disturbed_blocks_stay_marked_and_are_repeated_up_to_a_third():
    def every_other(number):
        return "the CPU's clock fell" if number % 2 else None

    quiet = Effort(processes=1, blocks=6, seconds=1000)
    a, b = run(Scene(disturb=every_other), effort=quiet)
    for samples in (a, b):
        blocks = list(samples.blocks(disturbed=True))
        assert len(blocks) == 8
        assert {block.disturbed for block in blocks} == {None, "the CPU's clock fell"}
    assert len(list(run(Scene(), effort=quiet)[0].blocks(disturbed=True))) == 6
    asked = Scene(disturb=lambda number: "throttling began")
    found = run(asked, effort=Effort(samples=10, seconds=1000))[0]
    assert len(list(found.blocks(disturbed=True))) == 10


def test_on_round_sees_what_there_is_and_ends_it():
    seen = []

    def enough(found):
        seen.append([len(processes(samples)) for samples in found])
        return len(seen) == 2

    found = run(Scene(), effort=Effort(processes=9, blocks=2, seconds=1000), on_round=enough)
    assert seen == [[1, 1], [2, 2]]
    assert len(processes(found[0])) == 2


def test_device_time_counts_where_there_is_one_and_wall_time_is_beside_it():
    found = run(Scene(about=GPU, ms=lambda *_: 2.0), engines("a"))[0]
    assert set(next(found.blocks()).ms) == {2.0}
    run_ = found.runs[0]
    assert (run_.mode["clock"], run_.mode["graph"]) == ("device", True)
    assert run_.environment["state"]["wall_p50_ms"] == 2.5


def engines(*names):
    record = {"tensorrt": "8.6.1", "precision": "fp16"}
    return [subject(n, kind="engine", backend="tensorrt", record=record) for n in names]


def test_a_graph_that_one_network_refuses_is_left_out_for_all_and_recorded(caplog):
    def fails(op, process, number):
        if op == "time" and process == 0 and number == 1:
            return KDError("graph-refused", "a loop in it")
        return None

    scene = Scene(about=GPU, fails=fails)
    found = run(scene, engines("a", "b"))
    assert [samples.runs[0].mode["graph"] for samples in found] == [False, False]
    assert "a loop in it" in caplog.text
    modes = {values["mode"] for op, values in scene.places[1].asked if op == "time"}
    assert modes == {"device"}


def test_a_graph_that_was_asked_for_is_not_replaced():
    def fails(op, process, number):
        return KDError("graph-refused", "a loop", fix="without") if op == "time" else None

    refused("graph-refused", Scene(about=GPU, fails=fails), engines("a"), mode=Mode(graph=True))


def test_copies_are_measured_end_to_end():
    found = run(Scene(), mode=Mode(copies="both"))[0]
    assert (found.runs[0].mode["clock"], found.runs[0].mode["copies"]) == ("end_to_end", "both")


@pytest.mark.parametrize(("copies", "worker_mode"), [("in", "copy_in"), ("out", "copy_out")])
@pytest.mark.parametrize("about", [CPU, GPU])
def test_copies_of_one_direction_are_a_mode_of_their_own(about, copies, worker_mode):
    scene = Scene(about=about)
    subjects = AB if about is CPU else engines("a", "b")
    found = run(scene, subjects, mode=Mode(copies=copies))[0].runs[0].mode
    assert (found["copies"], found["streams"]) == (copies, 1)
    assert {values["mode"] for op, values in scene.places[0].asked if op == "time"} == {worker_mode}


@pytest.mark.parametrize(("about", "clock"), [(CPU, "wall"), (GPU, "device")])
def test_streams_are_in_flight_together_and_recorded_with_their_rate(about, clock):
    scene = Scene(about=about, ms=lambda *_: 60.0)
    subjects = AB if about is CPU else engines("a", "b")
    found = run(scene, subjects, mode=Mode(streams=4, copies="both"))[0]
    run_ = found.runs[0]
    assert (run_.mode["streams"], run_.mode["copies"], run_.mode["clock"]) == (4, "both", clock)
    assert run_.environment["state"]["inferences_per_s"] == pytest.approx(4000 / 60)
    assert {values["streams"] for op, values in scene.places[0].asked if op == "time"} == {4}
    assert {len(block.ms) for block in found.blocks()} == {8}  # two of each stream, at the least
    quick = run(Scene(about=about), subjects, mode=Mode(streams=4))[0]
    assert {len(block.ms) for block in quick.blocks()} == {300}  # 75 ms of four at once
    alone = run(Scene(about=about), subjects)[0].runs[0]
    assert "inferences_per_s" not in alone.environment["state"]


@pytest.mark.parametrize("mode", [
    Mode(streams=33), Mode(streams=0), Mode(graph=True), Mode(spin=False), Mode(batch=0),
    Mode(threads=0),
])  # fmt: skip
def test_modes_that_the_backend_has_not_are_refused(mode):
    error = refused("mode-refused", Scene(about=CPU), mode=mode)
    assert "onnxruntime 1.20.0" in error.message


def test_a_worker_without_streams_or_such_copies_is_told_what_it_can():
    about = {key: value for key, value in CPU.items() if key != "streams"}
    about["modes"] = ["device", "end_to_end"]
    error = refused("mode-refused", Scene(about=about), mode=Mode(streams=2))
    assert "1 to 1 streams" in error.fix
    error = refused("mode-refused", Scene(about=about), mode=Mode(copies="in"))
    assert "copies none and both" in error.fix


def test_samples_to_the_letter_are_of_one_stream():
    error = refused("effort-refused", Scene(), effort=Effort(samples=10), mode=Mode(streams=2))
    assert "one stream" in error.fix


def test_an_engine_with_room_for_one_context_is_told_so():
    def fails(op, process, number):
        return KDError("streams-refused", "one context", fix="one stream") if op == "time" else None

    scene = Scene(about=GPU, fails=fails)
    refused("streams-refused", scene, engines("a"), mode=Mode(streams=2))


def test_a_process_takes_no_more_than_its_own_seconds():
    scene = Scene(ms=lambda *_: 10.0)
    effort = Effort(processes=3, blocks=1000, seconds=1000, process_s=2.0)
    begin = scene.clock()
    found = run(scene, effort=effort)[0]
    assert len(processes(found)) == 3
    assert 4 < scene.clock() - begin <= 6.5


def test_a_cpu_is_measured_on_one_thread_unless_more_are_asked_for():
    for mode, threads in ((Mode(), 1), (Mode(threads=2), 2)):
        scene = Scene(about=CPU)
        assert run(scene, mode=mode)[0].runs[0].mode["threads"] == threads
        assert scene.places[-1].threads == threads


@pytest.mark.parametrize("spin", [True, False])
def test_how_a_gpu_is_waited_for_cannot_be_chosen(spin):
    refused("mode-refused", Scene(about=GPU), engines("a"), mode=Mode(spin=spin))


def test_the_threads_of_a_baseline_are_no_wish_on_a_gpu():
    found = run(Scene(about=GPU), engines("a"), mode=Mode(threads=1, kept=True))[0]
    assert found.runs[0].mode["threads"] is None


def test_a_gpu_has_no_threads_of_a_cpu():
    scene = Scene(about=GPU)
    assert run(scene, engines("a"))[0].runs[0].mode["threads"] is None
    assert scene.places[-1].threads is None
    refused("mode-refused", Scene(about=GPU), engines("a"), mode=Mode(threads=2))


def test_a_batch_is_the_first_size_and_recorded():
    scene = Scene()
    found = run(scene, mode=Mode(batch=4))[0]
    assert scene.places[0].arrays["image"].shape == (4, 3, 8, 8)
    assert (found.runs[0].mode["batch"], found.runs[0].mode["input"]) == (4, "4x3x8x8 float32")


def test_builds_are_separate_engines_and_their_files_go():
    scene = Scene(about=GPU, ms=lambda *_: 2.0)
    onnx_files = [subject("a", backend="tensorrt"), subject("b", backend="tensorrt")]
    effort = Effort(processes=2, blocks=2, builds=3, seconds=1000)
    a, b = run(scene, onnx_files, effort)
    hashes = [build.sha256 for samples in (a, b) for build in samples.runs[0].builds]
    assert len(set(hashes)) == 6
    assert AB[0].sha256 not in hashes
    assert a.sha256 == AB[0].sha256
    assert [len(build.processes) for build in a.runs[0].builds] == [2, 2, 2]
    assert all("timing_cache" not in values for op, values in scene.places[0].asked)
    asked = [(op, values) for place in scene.places for op, values in place.asked]
    built = {values["engine"] for op, values in asked if op == "build"}
    removed = {values["path"] for op, values in asked if op == "remove"}
    assert removed == built | {path + ".json" for path in built}
    assert not any(op == "time" for op, _ in scene.places[0].asked)  # not in the builder's process
    first = [place.loads[0] for place in scene.places[1:-1]]  # of processes of builds 0 1 2 0 1 2
    assert [{first[i], first[i + 3]} for i in range(3)] == [{"side0", "side1"}] * 3


def test_builds_do_not_count_as_measuring_time():
    scene = Scene(about=GPU, ms=lambda *_: 1.0)
    effort = Effort(processes=2, blocks=4, seconds=20)
    found = run(scene, [subject("a", backend="tensorrt")], effort)[0]  # a build takes 30 s
    assert [len(process.blocks) for process in processes(found)] == [4, 4]


def test_engines_go_when_measuring_fails():
    def fails(op, process, number):
        return KDError("cuda-error", "lost") if op == "time" and number == 3 else None

    scene = Scene(about=GPU, fails=fails)
    refused("bench-failed", scene, [subject("a", backend="tensorrt")])
    assert [op for op, _ in scene.places[-1].asked] == ["remove", "remove"]


@pytest.mark.parametrize(("subjects", "reason"), [
    ([subject("a")], "in every process anew"), (engines("a"), "built already"),
])  # fmt: skip
def test_what_is_not_built_is_not_built_twice(subjects, reason):
    effort = Effort(builds=2)
    assert reason in refused("builds-none", Scene(), subjects, effort).message


def test_an_engine_that_fails_midway_gives_no_samples():
    def fails(op, process, number):
        is_late = op == "time" and process == 1 and number == 9
        return KDError("cuda-error", "an illegal access", fix="see dmesg") if is_late else None

    seen = []
    error = refused("bench-failed", Scene(fails=fails), on_round=lambda found: seen.append(found))
    assert "an illegal access (cuda-error)" in error.message
    assert error.where == "board, process 2, block 1 of a"
    assert error.fix == "see dmesg"
    assert len(seen) == 1


def test_what_fails_from_the_start_keeps_its_own_name():
    def fails(op, process, number):
        return KDError("shape-refused", "too large", fix="less") if op == "time" else None

    refused("shape-refused", Scene(fails=fails))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_latency_that_is_none_gives_no_samples(value):
    scene = Scene()
    scene.ms = lambda network, process, number: value if len(scene.places[0].timed) > 12 else 1.0
    scene.clock.pass_ = lambda seconds: None
    assert "no positive number" in refused("bench-failed", scene).message


def test_a_machine_that_changes_between_processes_is_refused():
    scene = Scene(facts=lambda process: {"power_mode": ["15W", "25W"][process], "cpu": "x"})
    assert "power_mode: 15W -> 25W" in refused("machine-changed", scene).message


def test_different_backends_are_refused():
    error = refused(
        "backend-differs", Scene(), [subject("a", backend="onnxruntime"), *engines("b")]
    )
    assert "a: onnxruntime, b: tensorrt" in error.message


def test_different_inputs_are_refused():
    pair = [subject("a"), subject("b", input_shape=(1, 3, 16, 16))]
    assert "1x3x16x16" in refused("inputs-differ", Scene(), pair).message


def test_sizes_that_nobody_knows_are_asked_for():
    error = refused("shape-unknown", Scene(), [subject("a", input_shape=None)])
    assert "?x3x?x?" in error.message
    assert "--shape" in error.fix
    run(Scene(), [subject("a", input_shape=(1, 3, 8, 8))])


def test_a_shape_that_the_network_has_not_is_refused():
    refused("shape-refused", Scene(), [subject("a", input_shape=(1, 4, 8, 8))])
    refused("shape-refused", Scene(), [subject("a", input_shape=(3, 8, 8))])


def test_other_number_types_have_inputs_and_strings_have_none():
    scene = Scene(ports={
        "ids": {"dtype": "int64", "shape": [1, 5]}, "half": {"dtype": "float16", "shape": [2]},
    })  # fmt: skip
    found = run(scene, [subject("a", input_shape=None)])[0]
    arrays = scene.places[0].arrays
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "ids": "int64", "half": "float16",
    }  # fmt: skip
    assert found.runs[0].mode["input"] == "1x5 int64, 2 float16"
    ports = {"text": {"dtype": "tensor(string)", "shape": [1]}}
    refused("input-refused", Scene(ports=ports), [subject("a", input_shape=None)])


@pytest.mark.parametrize("effort", [
    Effort(processes=0), Effort(blocks=1), Effort(builds=0), Effort(seconds=0), Effort(samples=1),
    Effort(seconds=float("nan")), Effort(samples=10, builds=2),
])  # fmt: skip
def test_an_impossible_effort_is_refused(effort):
    refused("effort-refused", Scene(), effort=effort)


def test_a_real_worker_of_onnx_runtime(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(onnx_graphs.chain(2), path)
    a, b = measure([find_subject(path)] * 2, None, Effort(samples=10), Mode())
    assert sum(len(block.ms) for block in a.blocks(disturbed=True)) == 10
    run_ = b.runs[0]
    assert run_.mode["input"] == "1x3x16x16 float32"
    assert run_.environment["facts"]["onnxruntime_version"]
    assert run_.environment["facts"]["backend"] == "onnxruntime"
    assert run_.started.endswith("+00:00")
