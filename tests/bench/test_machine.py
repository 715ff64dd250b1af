import json
import subprocess
import sys

from kdcompile.bench import machine


def test_fingerprint_is_json_and_names_processor_and_libraries() -> None:
    found = machine.fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]
    assert 1 <= found["usable_cores"] <= found["cores"]
    assert found["libraries"]["numpy"]
    assert found["python"].count(".") == 2


def test_id_is_short_stable_and_follows_the_machine(monkeypatch) -> None:
    before = machine.fingerprint_id()
    assert before == machine.fingerprint_id()
    assert len(before) == machine.ID_CHARS
    monkeypatch.setattr(machine, "cpu", lambda: "another processor")
    assert machine.fingerprint_id() != before


def test_id_is_the_same_in_another_process_and_needs_no_heavy_import() -> None:
    code = (
        "import sys; from kdcompile.bench.machine import fingerprint_id; print(fingerprint_id());"
        "print(*{'torch', 'onnx', 'onnxruntime', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [machine.fingerprint_id(), ""]


def test_libraries_that_are_not_installed_are_absent() -> None:
    assert machine.versions(("numpy", "no-such-distribution")).keys() == {"numpy"}
