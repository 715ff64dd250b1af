import json
import subprocess
import sys

from kdcompile.latency import environment


def test_fingerprint_is_json_and_names_processor_and_libraries() -> None:
    found = environment.fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]
    assert 1 <= found["usable_cores"] <= found["cores"]
    assert found["libraries"]["numpy"]
    assert found["python"].count(".") == 2


def test_id_is_short_stable_and_follows_the_machine(monkeypatch) -> None:
    before = environment.fingerprint_id()
    assert before == environment.fingerprint_id()
    assert len(before) == environment.ID_CHARS
    monkeypatch.setattr(environment, "cpu", lambda: "another processor")
    assert environment.fingerprint_id() != before


def test_id_is_the_same_in_another_process_and_needs_no_heavy_import() -> None:
    code = (
        "import sys; from kdcompile.latency.environment import fingerprint_id;"
        "print(fingerprint_id());"
        "print(*{'torch', 'onnx', 'onnxruntime', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [environment.fingerprint_id(), ""]


def test_libraries_that_are_not_installed_are_absent() -> None:
    assert environment.versions(("numpy", "no-such-distribution")).keys() == {"numpy"}
