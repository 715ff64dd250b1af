"""`kdcompile verify BUNDLE`: which reference outputs a network is held against."""

import importlib
import json
from contextlib import contextmanager

import numpy as np
import pytest
from click.testing import CliRunner
from documents import check_document

from kdcompile import api
from kdcompile.bundle.manifest import Bundle
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.data.preprocess import Preprocess
from kdcompile.debug import network

verify = importlib.import_module("kdcompile.cli.verify")  # the package has the command
IMAGE = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 3, 4, 4)
FACTORS = {"fp32": 1.0, "int8": 3.0}  # what the reference has of each precision


def listed(folder, *names):
    return {name: {"sha256": file_sha256(folder / name)} for name in names}


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """`checked(precision, via, factor)`: a bundle whose network multiplies the image."""
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "gates.json").write_text(json.dumps({"parity": {"min_sqnr_db": 20.0}}))
    outputs = {f"output_{p}_0": factor * IMAGE for p, factor in FACTORS.items()}
    np.savez(tmp_path / "kit" / "reference.npz", input_0=IMAGE, **outputs)

    def check(precision, via, factor):
        files = listed(tmp_path, "kit/gates.json", "kit/reference.npz")
        about = {"files": files, "verdict": "passed", "exit_code": 0, "precision": precision}
        bundle = Bundle(tmp_path, about)

        @contextmanager
        def opened(found, place, onnx):
            assert (found, place, onnx) == (bundle, via, via is None)
            yield lambda image: factor * image

        monkeypatch.setattr(network, "open_network", opened)
        return api.check_bundle(bundle, via=via)

    return check


@pytest.mark.parametrize(
    ("precision", "via", "factor", "code"),
    [
        ("int8", None, 3.0, 0),  # the file, against its own outputs
        ("int8", None, 1.0, 3),
        ("bf16", None, 1.0, 0),  # no outputs of its own: nothing here runs bf16
        ("int8", "ssh://board", 1.0, 0),  # an engine, against fp32's, as its board judged it
        ("int8", "ssh://board", 3.0, 3),
        ("bf16", "ssh://board", 1.0, 0),
    ],
)
def test_the_outputs_that_a_network_is_held_against(checked, precision, via, factor, code):
    found = checked(precision, via, factor)
    assert found.exit_code == code
    assert found.parity["n"] == 1
    assert (found.engine is not None) == (via is not None)
    check_document("verify", found.to_json())


@pytest.fixture
def without_a_kit(tmp_path, monkeypatch):
    """`without_a_kit(factor)`: the check of a cpu bundle whose network multiplies the image."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    prepare = Preprocess(3, (0.5,) * 3, (0.25,) * 3, (4, 4), (4, 4))
    (tmp_path / "preprocess.json").write_text(json.dumps(prepare.to_json()))
    parity = tmp_path / "parity"
    parity.mkdir()
    (parity / "gates.json").write_text(json.dumps({"parity": {"min_sqnr_db": 20.0}}))
    np.savez(parity / "photos.npz", **{"0": pixels, "1": pixels[::-1], "2": pixels})
    images = [prepare(pixels), prepare(pixels[::-1])]  # there are fewer outputs than photos
    outputs = {f"output_{p}_{i}": f * x for p, f in FACTORS.items() for i, x in enumerate(images)}
    np.savez(parity / "outputs.npz", **outputs)
    files = listed(tmp_path, "preprocess.json", *(f"parity/{p.name}" for p in parity.iterdir()))
    about = {"files": files, "verdict": "passed", "exit_code": 0, "precision": "int8"}
    bundle = Bundle(tmp_path, about | {"preprocess": "preprocess.json"})

    def check(factor, via=None):
        @contextmanager
        def opened(*_, **__):
            yield lambda image: factor * image

        monkeypatch.setattr(network, "open_network", opened)
        return api.check_bundle(bundle, via=via)

    return check


@pytest.mark.parametrize(
    ("via", "factor", "code"), [(None, 3.0, 0), (None, 1.0, 3), ("x", 1.0, 0), ("x", 3.0, 3)]
)
def test_a_bundle_without_a_kit_is_checked_too(without_a_kit, via, factor, code):
    found = without_a_kit(factor, via)
    assert found.exit_code == code
    assert found.parity["n"] == 2


def test_the_agreement_is_told_in_words(without_a_kit):
    assert verify._in_words(without_a_kit(3.0).parity) == (
        "passed, 200.0 dB over 2 reference outputs, at least 20 dB wanted; "
        "the worst of them 200.0 dB, largest relative error 0"
    )
    failed = verify._in_words(without_a_kit(1.0).parity)
    assert failed.startswith("failed, 3.5 dB over 2 reference outputs, at least 20 dB wanted")
    absent = network.NO_REFERENCE
    assert verify._in_words(absent) == absent


def test_an_engine_that_is_not_trusted_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text("{}")
    order = []

    def trust(folder, key):
        order.append("trust")
        raise KDError("signature-missing", "not signed", fix="sign it")

    monkeypatch.setattr(verify, "open_trusted", trust)
    monkeypatch.setattr(api, "check_bundle", lambda *_, **__: order.append("opened"))
    done = CliRunner().invoke(verify.verify, [str(tmp_path), "--trusted", "key.pub"])
    assert isinstance(done.exception, KDError)
    assert order == ["trust"]
