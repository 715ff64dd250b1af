"""A board's record decides the pending gates, and nothing but a true one gets in."""

import hashlib
import json
import os

import pytest
from click.testing import CliRunner
from played_board import (
    COUNT,
    ENGINE,
    GATES,
    KIT,
    NANO,
    SEED,
    host_report,
    record,
    told,
)

from kdcompile.bundle import manifest, swap
from kdcompile.bundle.merge import merge
from kdcompile.bundle.signature import VARIABLE, open_bundle, sign_bundle
from kdcompile.cli import cli
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, write_json
from kdcompile.core.store import Store
from kdcompile.gates.from_board import judge_board
from kdcompile.passes.bundle import install, run


@pytest.fixture(scope="module")
def built(tmp_path_factory, make_step):
    """A bundle for a board, as the stages make it."""
    root = tmp_path_factory.mktemp("built")
    store = Store(root / "store")
    folder = install(run(make_step(store, report=host_report()), store, None), root / "bundle")
    write_json(folder / "kit/gates.json", GATES)
    write_json(folder / "kit/kit.json", KIT)
    choice = {"precision": "int8", "backend": "onnxruntime", "backend_version": "1.20"}
    manifest.write_manifest(folder, host_report(), "counting", choice)
    return folder


@pytest.fixture
def bundle(built, tmp_path):
    for path in (p for p in built.rglob("*") if p.is_file()):
        target = tmp_path / "bundle" / path.relative_to(built)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)  # merge replaces files, it never writes into one
    return tmp_path / "bundle"


@pytest.fixture
def device(bundle):
    return record(file_sha256(bundle / "kit/kit.json"))


@pytest.fixture
def merged(bundle, device, tmp_path):
    """`merged(engine=None)`: write the record and merge it."""

    def make(engine=None):
        (tmp_path / "device.json").write_text(json.dumps(device))
        return merge(bundle, tmp_path / "device.json", engine, judge_board)

    return make


@pytest.fixture
def judged(device):
    """`judged()`: the report of the record as it is now."""
    return lambda: judge_board(host_report(), KIT, GATES, device, "device.json")[0]


def verdicts(report):
    return {gate.name: gate.verdict for gate in report.gates}


def examples_of(bundle):
    page = (bundle / "report.html").read_text()
    start = page.index('<h2 id="examples">')
    return page[start : page.index("<h2 ", start + 1)]


def test_pending_gates_become_device_verdicts(merged, bundle):
    before = examples_of(bundle)
    report = merged()
    assert examples_of(bundle) == before
    assert before.count("<img") > 0
    page = (bundle / "report.html").read_text()
    assert "speedup@device" in page
    assert NANO["module"] in page
    assert "| speedup@device | passed | device |" in (bundle / "report.md").read_text()
    assert NANO["module"] in (bundle / "MODEL_CARD.md").read_text()
    assert (bundle / "device/device.json").is_file()
    assert verdicts(report) == {
        "accuracy@device": "passed", "parity@device": "passed", "speedup@device": "passed",
        "size_mb": "passed", "size_mb@device": "passed",
    }  # fmt: skip
    assert (report.verdict, report.exit_code) == ("passed", 0)
    assert all(g.evidence == "device" for g in report.gates if g.name.endswith("@device"))
    found = manifest.read_bundle(bundle)
    assert found.report() == report
    assert found.manifest["verdict"] == "passed"
    assert found.manifest["evidence"]["speedup@device"] == "device"
    speedup = next(g for g in report.gates if g.name == "speedup@device")
    (number,) = speedup.measurements
    assert number.value == pytest.approx(4)
    assert (number.machine, number.backend_version) == (NANO["module"], "10.3.0")
    assert "CUDA graph" in number.mode
    assert "25W" in number.mode
    assert "teacher in fp16 and student in int8" in number.mode


def test_a_later_board_replaces_an_earlier_one(merged, judged, device, bundle):
    first = judged()
    device["test"] = None
    assert verdicts(merged())["accuracy@device"] == "pending"
    device["test"] = {"digest": told(), "n": COUNT, "seed": SEED}
    assert merged() == first
    assert len(first.gates) == 5
    assert (bundle / "device/report_host.json").is_file()


def test_the_engine_comes_along(merged, bundle, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "e_int8.plan").write_bytes(ENGINE)
    about = {
        "tensorrt": "10.3.0",
        "precision": "fp16",
        "sha256": hashlib.sha256(ENGINE).hexdigest(),
    }
    (out / "e_int8.plan.json").write_text(json.dumps(about))
    merged(out)
    found = manifest.read_bundle(bundle)
    assert found.file("model.engine").read_bytes() == ENGINE
    assert json.loads(found.file("model.engine.json").read_text()) == about
    assert "| precision of model.engine | fp16 |" in found.file("MODEL_CARD.md").read_text()
    parts = json.loads(found.file("sbom.cdx.json").read_text())["components"]
    (engine,) = (part for part in parts if part["name"] == "model.engine")
    assert {"name": "kdcompile:precision", "value": "fp16"} in engine["properties"]
    merged()  # the engine was an earlier board's
    assert "model.engine" not in manifest.read_bundle(bundle).manifest["files"]


@pytest.mark.parametrize("about", [None, "{", "[]", '{"sha256": "0"}'])
def test_an_engine_without_its_record_is_refused(merged, bundle, tmp_path, about):
    """Neither infer.py nor the worker opens such an engine."""
    before = (bundle / "manifest.json").read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/e_int8.plan").write_bytes(ENGINE)
    if about is not None:
        (tmp_path / "out/e_int8.plan.json").write_text(about)
    with pytest.raises(KDError) as caught:
        merged(tmp_path / "out")
    assert caught.value.code == "merge-mismatch"
    assert "out/e_int8.plan.json" in caught.value.fix
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_merge_that_fails_leaves_the_bundle(merged, bundle, monkeypatch):
    before = (bundle / "manifest.json").read_bytes()

    def refuse(one, other):
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(swap, "_exchange", refuse)
    with pytest.raises(KDError) as caught:
        merged()
    assert caught.value.code == "output-unwritable"
    assert (bundle / "manifest.json").read_bytes() == before
    manifest.read_bundle(bundle)
    assert [p.name for p in bundle.parent.iterdir() if p.name.startswith(".")] == []


def test_an_engine_of_another_build_does_not_stay(merged, bundle):
    (bundle / "model.engine").write_bytes(b"played by a CPU")
    (bundle / "model.engine.json").write_text("{}")
    choice = {"precision": "int8", "backend": "onnxruntime", "backend_version": "1.20"}
    manifest.write_manifest(bundle, host_report(), "counting", choice)
    merged()
    assert "model.engine" not in manifest.read_bundle(bundle).manifest["files"]


@pytest.mark.parametrize("content", [None, b"another engine"])
def test_another_engine_is_refused(merged, bundle, tmp_path, content):
    before = (bundle / "manifest.json").read_bytes()
    (tmp_path / "out").mkdir()
    if content:
        (tmp_path / "out/e_int8.plan").write_bytes(content)
    with pytest.raises(KDError) as caught:
        merged(tmp_path / "out")
    assert caught.value.code == "merge-mismatch"
    assert "copy out/e_int8.plan" in caught.value.fix
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda d: d.update(kit="3" * 64), "not made by this bundle's kit"),
        (lambda d: d.update(worker="3" * 64), "agent.pyz"),
    ],
)
def test_a_record_of_something_else_is_refused(merged, device, bundle, spoil, part):
    before = (bundle / "manifest.json").read_bytes()
    spoil(device)
    with pytest.raises(KDError) as caught:
        merged()
    assert caught.value.code == "merge-mismatch"
    assert part in caught.value.message
    assert caught.value.fix
    assert (bundle / "manifest.json").read_bytes() == before


def deep(levels=100_000):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "text", ["", "{", "\x00", deep(), '{"format": NaN}', '{"kit": 1' + "0" * 5000 + "}", "\ud800"]
)  # fmt: skip
def test_what_is_no_json_is_refused(bundle, tmp_path, text):
    (tmp_path / "device.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(KDError) as caught:
        merge(bundle, tmp_path / "device.json", None, judge_board)
    assert caught.value.code == "device-unreadable"
    assert "from the board again" in caught.value.fix


def test_a_missing_record_and_a_bundle_without_a_kit(bundle, tmp_path):
    with pytest.raises(KDError) as caught:
        merge(bundle, tmp_path / "none.json", None, judge_board)
    assert caught.value.code == "device-unreadable"
    (bundle / "kit/kit.json").unlink()
    choice = {"precision": "int8", "backend": "onnxruntime", "backend_version": "1.20"}
    manifest.write_manifest(bundle, host_report(), "counting", choice)
    with pytest.raises(KDError) as caught:
        merge(bundle, tmp_path / "none.json", None, judge_board)
    assert caught.value.code == "kit-missing"


def test_a_merged_bundle_is_signed_again(bundle, device, tmp_path, monkeypatch):
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization as s

    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "key.pub").write_bytes(public)
    (tmp_path / "device.json").write_text(json.dumps(device))
    sign_bundle(bundle, tmp_path / "key.pem")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "key.pub"))
    words = ["bundle", str(bundle), "--merge", str(tmp_path / "device.json")]
    for _ in range(2):  # a later record of the board takes the place of the first
        done = CliRunner().invoke(cli, [*words, "--sign", str(tmp_path / "key.pem")])
        assert not isinstance(done.exception, KDError), done.exception
        assert "signed by " in done.stderr
        found = open_bundle(bundle)
        assert "device/device.json" in found.manifest["files"]
    assert "resigned_unverified" not in found.manifest
    done = CliRunner().invoke(cli, words)
    assert "no longer signed" in done.stderr
    sign = ["--sign", str(tmp_path / "key.pem")]
    monkeypatch.delenv(VARIABLE)
    assert CliRunner().invoke(cli, [*words, *sign]).exception.code == "signature-missing"
    for more in (["--resign-unverified"], []):  # a later merge does not take it back
        CliRunner().invoke(cli, [*words, *sign, *more])
        assert open_bundle(bundle).manifest["resigned_unverified"] is True
    done = CliRunner().invoke(cli, ["report", str(bundle), "--trusted", str(tmp_path / "key.pub")])
    assert "warning: it was signed anew" in done.stderr


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_record_without_an_end_is_not_waited_for(make, bundle, tmp_path):
    make(tmp_path / "device.json")
    with pytest.raises(KDError) as caught:
        merge(bundle, tmp_path / "device.json", None, judge_board)
    assert caught.value.code == "device-unreadable"
    assert any(why in caught.value.message for why in ("no regular file", "Is a directory"))
