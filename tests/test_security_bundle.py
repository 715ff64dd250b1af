"""What a bundle of somebody else cannot do, and that one's own is whole to the last byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle
from command_line import CommandLine

import kdcompile
from kdcompile.bundle import python_sample
from kdcompile.bundle.manifest import read_bundle, read_manifest
from kdcompile.bundle.signature import sign_bundle
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.remote.archive import NAME, agent_zip, packed

PACKAGE = Path(kdcompile.__file__).parent


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle.copied(tmp_path)


def _names(bundle):
    return sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())


def test_python_files_of_a_bundle_are_the_packages_own(bundle):
    own = {path.read_bytes(): path.name for path in PACKAGE.rglob("*.py")}
    own |= {python_sample.text("counting").encode(): "infer.py"}  # which is joined of two of them
    files = read_bundle(bundle).manifest["files"]
    scripts = [name for name in _names(bundle) if name.endswith(".py")]
    assert {"infer.py", "kit/build_engine.py"} <= set(scripts)
    for name in scripts:
        assert own[(bundle / name).read_bytes()] == Path(name).name
        assert files[name]["sha256"] == file_sha256(bundle / name)
    assert (bundle / "kit" / NAME).read_bytes() == agent_zip()
    runs = (".sh", ".so", ".exe", ".bat", ".pyc", ".dll")
    assert not [name for name in _names(bundle) if name.endswith(runs)]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return CommandLine(monkeypatch, capsys)


def test_a_flipped_byte_in_any_file_is_refused(bundle, command, tmp_path):
    private, public = _keys(tmp_path)
    sign_bundle(bundle, private)
    names = _names(bundle)
    assert len(names) > 30
    for name in names:
        content = (bundle / name).read_bytes()
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        (bundle / name).write_bytes(content[:middle] + flipped + content[middle + 1 :])
        for words in (("run", "bundle", "photo.png"), ("verify", "bundle")):
            code, text = command(*words, "--trusted", public)
            assert code == 1, (name, text)
            assert Path(name).name in text, (name, text)
            assert "signature-" in text or "bundle-corrupt" in text, text
        (bundle / name).write_bytes(content)
    assert command("run", "bundle", "photo.png", "--trusted", public)[0] == 0


def _keys(folder):
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    key, pem = ed25519.Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    private, public = folder / "key.pem", folder / "key.pub"
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, form))
    return private, public


def test_a_flipped_byte_anywhere_in_the_manifest_is_refused(bundle):
    path = bundle / "manifest.json"
    content = path.read_bytes()
    for at in range(0, len(content), 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(KDError, match=r"manifest\.json|schema") as caught:
            read_manifest(bundle)
        assert caught.value.code in ("bundle-corrupt", "bundle-missing", "bundle-version")


def test_a_file_without_end_is_refused_before_it_is_read(bundle):
    os.truncate(bundle / "model.onnx", 1 << 40)
    with pytest.raises(KDError, match="has 1099511627776 bytes"):
        read_bundle(bundle)


def test_a_module_beside_the_agent_is_not_run(bundle, tmp_path):
    """Neither by `infer.py`, which runs an engine with it, nor by the script of the kit."""
    mark = tmp_path / "ran"
    plant = f"import os\nos.mkdir({str(mark)!r})\n"
    for name in ("kdcompile.py", "zipfile.py", "argparse.py"):
        (bundle / "kit" / name).write_text(plant)
    engine = bundle / "model.engine"
    engine.write_bytes(b"no engine")
    (bundle / "model.engine.json").write_text(json.dumps({"precision": "int8"}))
    tiny_bundle.resealed(bundle, engine="model.engine")
    for words in (("infer.py", tmp_path / "photo.png"), ("kit/build_engine.py",)):
        command = [sys.executable, bundle / words[0], *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (1, 4)
        assert "error" in done.stderr
        assert "Traceback" not in done.stderr
    assert not mark.exists()
    plain = f"import sys; sys.path.insert(0, {str(bundle / 'kit')!r}); import kdcompile"
    subprocess.run([sys.executable, "-S", "-c", plain], check=True)
    assert mark.is_dir(), "the plant works where Python looks for it"


def test_an_agent_that_was_changed_is_not_run(bundle, tmp_path):
    mark = tmp_path / "ran"
    engine = bundle / "model.engine"
    engine.write_bytes(b"no engine")
    (bundle / "model.engine.json").write_text(json.dumps({"precision": "int8"}))
    tiny_bundle.resealed(bundle, engine="model.engine")
    source = {"kdcompile/__init__.py": f"import os\nos.mkdir({str(mark)!r})\n"}
    (bundle / "kit" / NAME).write_bytes(packed(source))
    words = [sys.executable, bundle / "infer.py", tmp_path / "photo.png"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: kit/agent.pyz is not the file of the manifest" in done.stderr
    assert not mark.exists()


def test_a_kit_that_ran_leaves_its_bundle_intact(bundle, tmp_path):
    script = bundle / "kit" / "build_engine.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, check=False)
    assert done.returncode == 0
    assert read_bundle(bundle).name == "crowd"
