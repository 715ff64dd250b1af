"""A signature covers the whole bundle by its manifest, and only a trusted key makes it count."""

import base64
import json
import os

import pytest
from click.testing import CliRunner

from kdcompile.bundle.form import SIGNATURE, sealed
from kdcompile.bundle.manifest import read_bundle, write_manifest
from kdcompile.bundle.signature import VARIABLE, Signature, check_signature, sign_bundle
from kdcompile.cli import cli
from kdcompile.core.errors import EXIT_MISSING, KDError, ToolMissingError
from kdcompile.core.files import write_json
from kdcompile.core.report import Report

CHOICE = {"precision": "int8", "backend": "onnxruntime", "backend_version": "1.20"}
ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
from cryptography.hazmat.primitives import serialization as s  # noqa: E402


@pytest.fixture(autouse=True)
def no_key_of_the_user(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"model")
    write_json(folder / "preprocess.json", {"channels": 1})
    report = Report("crowd", "jetson", "passed", 0, (), (), {})
    write_json(folder / "report.json", report.to_json())
    write_manifest(folder, report, "counting", CHOICE)
    return folder


def save_key(folder, name="key", key=None, password=None):
    """A pair of PEM files, private and public."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    lock = s.BestAvailableEncryption(password) if password else s.NoEncryption()
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, lock)
    public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem", folder / f"{name}.pub"


@pytest.fixture
def keys(tmp_path):
    return save_key(tmp_path)


def refused(code, function, *arguments):
    with pytest.raises(KDError) as caught:
        function(*arguments)
    assert caught.value.code == code
    assert caught.value.exit_code == 1
    assert caught.value.fix
    return str(caught.value)


def test_signed_bundle_is_whole_and_checks_with_the_key(bundle, keys):
    fingerprint = sign_bundle(bundle, keys[0])
    assert read_bundle(bundle).name == "crowd"
    assert check_signature(bundle, keys[1]) == Signature(fingerprint, is_trusted=True)
    record = (bundle / "manifest.sig").read_bytes()
    assert sign_bundle(bundle, keys[0]) == fingerprint
    assert (bundle / "manifest.sig").read_bytes() == record  # Ed25519 draws nothing at random


def test_fingerprint_is_the_one_of_openssl(bundle, keys):
    import hashlib

    key = s.load_pem_public_key(keys[1].read_bytes())
    der = key.public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo)
    assert sign_bundle(bundle, keys[0]) == hashlib.sha256(der).hexdigest()


def test_without_a_trusted_key_a_signature_proves_nothing(bundle, keys):
    assert check_signature(bundle, None) is None
    sign_bundle(bundle, keys[0])
    found = check_signature(bundle, None)
    assert found is not None
    assert not found.is_trusted
    assert str(found).endswith("not checked against a key you trust")


def test_trusted_key_wants_a_signature(bundle, keys):
    assert "--sign" in refused("signature-missing", check_signature, bundle, keys[1])


def test_other_key_is_refused(bundle, keys, tmp_path):
    sign_bundle(bundle, keys[0])
    _, other = save_key(tmp_path, "other")
    assert "trusted key is" in refused("signature-wrong", check_signature, bundle, other)


def test_flipped_byte_anywhere_is_refused(bundle, keys):
    sign_bundle(bundle, keys[0])
    for name in ("model.onnx", "preprocess.json", "report.json"):
        before = (bundle / name).read_bytes()
        (bundle / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        refused("bundle-corrupt", read_bundle, bundle)
        (bundle / name).write_bytes(before)
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace('"passed"', '"failed"'))
    refused("bundle-corrupt", read_bundle, bundle)
    values = json.loads((bundle / "manifest.json").read_text())
    del values["digest"]
    write_json(bundle / "manifest.json", sealed(values))
    assert read_bundle(bundle).manifest["verdict"] == "failed"  # no hash sees it
    refused("signature-wrong", check_signature, bundle, keys[1])


def test_forged_fingerprint_does_not_help(bundle, keys, tmp_path):
    other, _ = save_key(tmp_path, "other")
    trusted = sign_bundle(bundle, keys[0])
    sign_bundle(bundle, other)
    record = json.loads((bundle / "manifest.sig").read_text())
    write_json(bundle / "manifest.sig", record | {"public_key_sha256": trusted})
    assert "not of this manifest" in refused("signature-wrong", check_signature, bundle, keys[1])


@pytest.mark.parametrize(
    "change",
    [
        lambda r: {**r, "algorithm": "rsa"},
        lambda r: {**r, "signature": "not base64!"},
        lambda r: {**r, "public_key_sha256": "zz"},
        lambda r: {**r, "public_key_sha256": "ab"},
        lambda r: {"signature": r["signature"]},
        lambda r: [r],
        lambda r: None,
    ],
)
def test_damaged_signature_is_refused_with_or_without_a_key(bundle, keys, change):
    sign_bundle(bundle, keys[0])
    write_json(bundle / "manifest.sig", change(json.loads((bundle / "manifest.sig").read_text())))
    for key in (None, keys[1]):
        refused("signature-corrupt", check_signature, bundle, key)


def test_new_manifest_drops_the_old_signature(bundle, keys):
    sign_bundle(bundle, keys[0])
    write_manifest(bundle, read_bundle(bundle).report(), "counting", CHOICE)
    assert check_signature(bundle, None) is None


def test_signature_cannot_be_listed_as_a_file(bundle, keys):
    sign_bundle(bundle, keys[0])
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["manifest.sig"] = {"sha256": "0" * 64, "bytes": 1}
    write_json(bundle / "manifest.json", manifest)
    assert "not in the bundle" in refused("bundle-corrupt", read_bundle, bundle)


def test_keys_that_cannot_be_used(bundle, keys, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec

    locked, _ = save_key(tmp_path, "locked", password=b"secret")
    curve, curve_public = save_key(tmp_path, "curve", ec.generate_private_key(ec.SECP256R1()))
    assert "openssl pkey" in refused("key-unreadable", sign_bundle, bundle, locked)
    for path in (curve, keys[1], tmp_path / "absent"):
        refused("key-unreadable", sign_bundle, bundle, path)
    sign_bundle(bundle, keys[0])
    for path in (curve_public, keys[0], tmp_path / "absent"):
        refused("key-unreadable", check_signature, bundle, path)
    refused("bundle-missing", sign_bundle, tmp_path / "nowhere", keys[0])


def test_keys_of_an_unknown_algorithm(bundle, keys, tmp_path):
    """`cryptography` has an error of its own for them, which is no ValueError."""
    kind = bytes.fromhex("300506032a0304")  # the object identifier 1.2.3.4
    private, public = (
        bytes([0x30, len(body)]) + body
        for body in (b"\x02\x01\x00" + kind + b"\x04\x01\x00", kind + b"\x03\x02\x00\x00")
    )
    for name, der in (("PRIVATE KEY", private), ("PUBLIC KEY", public)):
        text = base64.b64encode(der).decode()
        (tmp_path / name).write_text(f"-----BEGIN {name}-----\n{text}\n-----END {name}-----\n")
    refused("key-unreadable", sign_bundle, bundle, tmp_path / "PRIVATE KEY")
    sign_bundle(bundle, keys[0])
    refused("key-unreadable", check_signature, bundle, tmp_path / "PUBLIC KEY")


def test_library_that_is_absent_is_exit_4(bundle, keys, monkeypatch):
    import sys

    sign_bundle(bundle, keys[0])
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    for function, key in ((sign_bundle, keys[0]), (check_signature, keys[1])):
        with pytest.raises(ToolMissingError) as caught:
            function(bundle, key)
        assert caught.value.exit_code == EXIT_MISSING
        assert "kdcompile[sign]" in caught.value.fix
    found = check_signature(bundle, None)  # needs no library
    assert found is not None


def test_verify_says_what_the_signature_is_worth(bundle, keys, monkeypatch):
    def verify(*options):
        return CliRunner().invoke(cli, ["verify", str(bundle), *options])

    assert "signature: not signed" in verify().stdout
    fingerprint = sign_bundle(bundle, keys[0])
    done = verify()
    assert done.exit_code == 0
    assert f"warning: signed by {fingerprint}, not checked" in done.stderr
    done = verify("--trusted", str(keys[1]))
    assert f"signature: signed by {fingerprint}\n" in done.stdout
    assert done.stderr == ""
    monkeypatch.setenv(VARIABLE, str(keys[1]))
    (bundle / "manifest.sig").unlink()
    done = verify()
    assert isinstance(done.exception, KDError)
    assert done.exception.code == "signature-missing"


def _endless(path):
    path.symlink_to("/dev/zero")


def _large(path):
    path.write_bytes(b" " * ((1 << 16) + 1))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, _endless, _large])
def test_a_key_signature_or_record_without_an_end_is_not_waited_for(make, bundle, keys, tmp_path):
    make(tmp_path / "odd")
    for action in (lambda key: sign_bundle(bundle, key), lambda key: check_signature(bundle, key)):
        sign_bundle(bundle, keys[0])
        with pytest.raises(KDError) as caught:
            action(tmp_path / "odd")
        assert caught.value.code == "key-unreadable"
    (bundle / SIGNATURE).unlink()
    make(bundle / SIGNATURE)
    with pytest.raises(KDError) as caught:
        check_signature(bundle, keys[1])
    assert caught.value.code in ("signature-missing", "signature-corrupt")
