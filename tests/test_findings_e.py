"""What an audit found of files from outside: each is one error with its fix, at once."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs import SPEC, project
from onnx_graphs import chain
from tiny_bundle import copied, resealed

from kdcompile.bundle.manifest import Bundle
from kdcompile.bundle.merge import _read as read_device
from kdcompile.bundle.run_tensors import _tensors
from kdcompile.bundle.signature import check_before_signing, open_bundle
from kdcompile.bundle.trust import Trust
from kdcompile.calib.trt_cache import read_cache
from kdcompile.ci.partial import _read as read_partial
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.data.formats import npz
from kdcompile.data.recognise import recognise
from kdcompile.latency.baseline import read_baseline
from kdcompile.latency.frame_sample import pictures_at
from kdcompile.models.weights import read_weights

READERS = {
    "spec.toml": load_spec,
    "base.json": read_baseline,
    "part.json": read_partial,
    "device.json": read_device,
    "c.cache": lambda path: read_cache(path, chain(1)),
    "a.npz": _tensors,
    "data/a.npz": lambda path: recognise(path.parent),
    "data/a.json": lambda path: recognise(path.parent),
    "data/a.csv": lambda path: recognise(path.parent),
    "pictures/a.jpg": lambda path: pictures_at([path.parent]),
    "w.pt": read_weights,
    "w.safetensors": read_weights,
    "w.safetensors.index.json": read_weights,
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_or_a_device_is_neither_waited_for_nor_read_for_ever(name, kind, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(KDError) as caught:
        READERS[name](path)
    assert caught.value.where
    assert caught.value.fix


KEYS = {"a key": ".".join("a" * 10_000) + " = 1", "a section": f"[{'.'.join('a' * 10_000)}]"}


@pytest.mark.parametrize("text", KEYS.values(), ids=KEYS)
def test_a_key_of_ten_thousand_parts(text, tmp_path):
    project(tmp_path, spec=f"{text}\n{SPEC}")
    start = time.process_time()
    with pytest.raises(KDError, match="line 1 has a key of over 32 parts") as caught:
        load_spec(tmp_path / "kdcompile.toml")
    assert caught.value.code == "spec-syntax"
    assert time.process_time() - start < 2


def test_weights_that_unpack_to_more_than_their_file(tmp_path):
    import zipfile

    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as whole,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert (tmp_path / "small.pt").stat().st_size < 10_000
    with pytest.raises(KDError, match="unpack to 4") as caught:
        read_weights(tmp_path / "small.pt")
    assert caught.value.code == "weights-unreadable"
    assert read_weights(tmp_path / "w.pt")[0]["a"].shape == (1_000_000,)


def test_an_archive_of_a_few_kilobytes_that_would_take_all_memory(tmp_path):
    import zipfile

    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }"
    part = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", part)
        archive.writestr("y.npy", part)
    with pytest.raises(KDError, match="has 0 bytes") as caught:
        npz.photos(tmp_path, "a.npz")
    assert caught.value.code == "archive-unreadable"
    assert "numpy.savez" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kit/gates.json", '{"parity": {"min_sqnr_db": "20"}}'),
        ("kit/gates.json", '{"parity": {"min_sqnr_db": 1e999}}'),
        ("preprocess.json", '{"channels": 7, "mean": [], "std": [], "min_hw": [], "max_hw": []}'),
        ("report.json", '{"name": "a", "name": "b"}'),
    ],
)
def test_documents_of_a_bundle_are_strict(name, text, tmp_path):
    from kdcompile.debug.network import check_outputs

    use = {"report.json": Bundle.report, "preprocess.json": lambda found: found.preprocess}
    bundle = copied(tmp_path)
    (bundle / name).write_text(text)
    resealed(bundle)
    found = open_bundle(bundle)
    with pytest.raises(KDError) as caught:
        use.get(name, check_outputs)(found)
    assert (caught.value.code, Path(caught.value.where)) == ("bundle-corrupt", bundle / name)
    assert "kdcompile build" in caught.value.fix


def test_a_report_has_no_numbers_in_quotes(tmp_path):
    bundle = copied(tmp_path)
    text = (bundle / "report.json").read_text()
    assert '"exit_code": 3' in text
    for wrong in ('"3"', "true", "3.5"):
        (bundle / "report.json").write_text(text.replace('"exit_code": 3', f'"exit_code": {wrong}'))
        resealed(bundle)
        with pytest.raises(KDError, match="exit_code"):
            open_bundle(bundle).report()


def test_what_was_verified_is_what_is_used(tmp_path):
    """Files that change after they were checked, and a manifest after its signature was."""
    bundle = copied(tmp_path)
    opened = open_bundle(bundle)
    (bundle / "preprocess.json").write_text((bundle / "preprocess.json").read_text() + " ")
    with pytest.raises(KDError, match="SHA-256 is not the manifest's") as caught:
        opened.preprocess  # noqa: B018
    assert caught.value.code == "bundle-corrupt"


def test_a_manifest_is_read_once_for_its_signature_and_its_values(tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    from kdcompile.bundle import manifest, signature

    key = tmp_path / "key.pem"
    assert shutil.which("openssl")
    os.system(f"openssl genpkey -algorithm ed25519 -out {key} 2>/dev/null")
    os.system(f"openssl pkey -in {key} -pubout -out {tmp_path / 'key.pub'} 2>/dev/null")
    bundle = copied(tmp_path)
    signature.sign_bundle(bundle, key)
    signed = (bundle / "manifest.json").read_bytes()
    reads = []

    def swapped(path, most):
        content = manifest_read(path, most)
        if path == bundle / "manifest.json":
            reads.append(path)
            path.write_bytes(content.replace(b'"verdict"', b'"verdikt"'))  # what comes next
        return content

    manifest_read = manifest.read_bounded
    monkeypatch.setattr(manifest, "read_bounded", swapped)
    monkeypatch.setattr(signature, "read_bounded", swapped)
    opened = open_bundle(bundle, Trust(tmp_path / "key.pub"))
    assert "verdict" in opened.manifest
    assert len(reads) == 1
    (bundle / "manifest.json").write_bytes(signed)
    assert check_before_signing(bundle, key, content=signed)


@pytest.mark.parametrize("array", [np.array([1j]), np.array([object()], dtype=object)])
def test_arrays_of_other_than_real_numbers(array, tmp_path):
    np.savez(tmp_path / "a.npz", x=array, allow_pickle=True)
    with pytest.raises(KDError) as caught:
        _tensors(tmp_path / "a.npz")
    assert caught.value.code == "sample-unreadable"
