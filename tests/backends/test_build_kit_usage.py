"""Energy and memory of the engine that ships, as the kit reads them on a board."""

import json
import subprocess
import sys
from zipfile import ZipFile

import pytest
from scipy import stats

from kdcompile.core.files import file_sha256
from kdcompile.gates.board_record import NoUsage, read_record
from kdcompile.gates.resources import of_board
from kdcompile.remote import usage
from kdcompile.remote.agent import second_worker
from kdcompile.remote.agent.messages import message
from kdcompile.remote.archive import NAME, packed

SENSOR = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
GATES = {"energy_mj": {"required": True, "max": 1e9, "evidence": "device"},
         "memory_mb": {"required": True, "max": 1e-9, "evidence": "device"}}  # fmt: skip


@pytest.fixture
def kit(onnx_files, make_kit):
    """A kit that asks for both, and reads the power for a moment."""
    made = make_kit(onnx_files())
    gates = json.loads((made / "gates.json").read_text())
    (made / "gates.json").write_text(json.dumps(gates | GATES))
    edit(
        made,
        "second_worker.py",
        '{"seconds": 5.0, "idle_s": 2.0}',
        '{"seconds": 1.0, "idle_s": 0.2}',
    )
    return made


@pytest.fixture
def run(kit):
    """`run(expect)`: the script as on a board -> standard output, `device.json`."""

    def make(expect):
        about = json.loads((kit / "kit.json").read_text())
        about["files"] = {name: file_sha256(kit / name) for name in about["files"]}
        (kit / "kit.json").write_text(json.dumps(about))
        command = [sys.executable, kit / "build_engine.py", "--backend", "onnxruntime"]
        options = ["--iterations", "1", "--precision", "fp32"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (expect, False), done.stderr
        return done.stdout, json.loads((kit / "out/device.json").read_text())

    return make


def edit(kit, module, old, new):
    """Change one module of the kit's agent."""
    with ZipFile(kit / NAME) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    name = f"kdcompile/remote/agent/{module}"
    assert texts[name].count(old) == 1
    texts[name] = texts[name].replace(old, new)
    (kit / NAME).write_bytes(packed(texts))


def verdicts(record):
    return {g["name"]: (g["verdict"], g["reason"]) for g in record["gates"]}


def test_with_a_sensor_both_gates_are_decided_and_home_agrees(kit, run, tmp_path):
    sensor = tmp_path / "root" / SENSOR
    sensor.mkdir(parents=True)
    for name, text in (("in1_label", "VDD_IN"), ("in1_input", 5000), ("curr1_input", 1200)):
        (sensor / name).write_text(f"{text}\n")
    process = tmp_path / "root/proc"
    process.mkdir()
    (process / "self").symlink_to("/proc/self")
    edit(kit, "worker.py", 'root = "/"', f"root = {str(tmp_path / 'root')!r}")
    shown, record = run(3)  # by the memory gate, which nothing passes
    told, busy = record["usage"], record["usage"]["power"]["busy"]
    assert (told["precision"], told["mode"], told["power"]["source"]) == (
        "fp32", "device", "INA3221",
    )  # fmt: skip
    found = of_board(read_record(record, "device.json").usage)
    assert found.energy.watts == pytest.approx(6.0)
    assert found.energy.mj == pytest.approx(6000.0 * busy["seconds"] / busy["inferences"])
    assert verdicts(record)["energy_mj"][0] == "passed"
    assert f"{found.energy.mj:.3g} mJ" in verdicts(record)["energy_mj"][1]
    assert f"energy {found.energy.mj:.3g} mJ an inference" in shown
    assert found.memory.mb > 0
    assert verdicts(record)["memory_mb"] == (
        "failed", f"{found.memory.mb:.4g} MB, at most 1e-09 MB wanted",
    )  # fmt: skip
    assert f"peak memory: {found.memory.mb:.4g} MB, peak resident growth" in shown


def test_without_a_sensor_the_reason_is_told(kit, run):
    shown, record = run(3)
    assert verdicts(record)["energy_mj"][0] == "skipped"
    assert verdicts(record)["energy_mj"][1].startswith("no INA3221 sensor")
    assert "energy: no INA3221 sensor" in shown
    assert verdicts(record)["memory_mb"][0] == "failed"
    found = of_board(read_record(record, "device.json").usage)
    assert found.energy.reason.startswith("no INA3221 sensor")


def test_nothing_ships_and_nothing_is_read(kit, run):
    gates = json.loads((kit / "gates.json").read_text())
    gates["parity"]["min_sqnr_db"] = 1000.0
    (kit / "gates.json").write_text(json.dumps(gates))
    shown, record = run(3)
    assert record["usage"] is None
    assert verdicts(record)["energy_mj"] == ("skipped", "no engine was chosen")
    assert "energy: no engine was chosen" in shown
    assert of_board(read_record(record, "device.json").usage) is None


def _failure(code, text):
    return {"code": code, "message": text, "fix": "see there"}


def _tells(*answers):
    """A program that answers so, whatever it is asked."""
    sent = b"".join(map(message, answers))
    return f"import sys\nw = sys.stdout.buffer.write\nw({sent!r})\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os\nos._exit(9)", "worker-died: the worker ended in the middle of memory"),
        (
            _tells({"id": None, "error": _failure("tensorrt-missing", "no module")}),
            "tensorrt-missing: no module",
        ),
        (
            _tells({"ok": {}}, {"error": _failure("cuda-error", "out of\n memory")}),
            "cuda-error: out of memory",
        ),
        (
            _tells({"ok": {}}, {"ok": {}}) + "w(b'\\0kdc' + bytes(7) + b'9{\"ok\": ')",
            "worker-died: the worker ended in the middle of time",
        ),
    ],
)  # fmt: skip
def test_a_worker_that_fails_is_a_reason_and_no_error(tmp_path, source, reason):
    (tmp_path / "broken.py").write_text(source)
    agent = str(tmp_path / "broken.py")
    found = second_worker.read_usage(agent, "tensorrt", "engine.plan", "in.npz", "device")
    assert found == {"absent": reason}
    record = of_board(NoUsage.model_validate(found))
    assert record.memory.reason == record.energy.reason == f"on the board: {reason}"


def test_a_board_without_room_for_a_second_process_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    found = second_worker.read_usage("agent.pyz", "tensorrt", "engine.plan", "in.npz", "device")
    assert found == {"absent": "a second process did not start: No such file or directory"}


def test_the_kits_table_of_students_t_is_scipys():
    assert set(usage.QUANTILES) == set(range(usage.MIN_PARTS, usage.PARTS + 1))
    for parts, quantile in usage.QUANTILES.items():
        assert quantile == pytest.approx(stats.t.ppf(0.975, parts - 1), rel=1e-6)
