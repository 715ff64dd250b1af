"""What ships beside the network: a server's folder, the model card, engines, lists of software."""

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kdcompile.bundle.card import write_card
from kdcompile.bundle.distributions import UNKNOWN, Used, licence_of, table, used
from kdcompile.bundle.manifest import read_bundle, write_manifest
from kdcompile.bundle.product import copy_engine, refresh_product
from kdcompile.bundle.samples import Tensor, write_triton
from kdcompile.core.errors import KDError, ToolMissingError
from kdcompile.core.files import write_json
from kdcompile.core.store import Store
from kdcompile.debug.network import open_network
from kdcompile.passes.bundle import install, run
from kdcompile.remote.archive import NAME, agent_zip

pytestmark = pytest.mark.usefixtures("drawn")

IMAGE = Tensor("image", "FLOAT", (1, 3, -1, -1))
LOGITS = Tensor("logits", "FLOAT", (1, 10))
CHOICE = {"precision": "int8", "backend": "onnxruntime", "backend_version": "1.20"}


@pytest.fixture(scope="module")
def bundle(make_step, tmp_path_factory):
    folder = tmp_path_factory.mktemp("product")
    store = Store(folder / "store")
    return read_bundle(install(run(make_step(store), store, None), folder / "out"))


@pytest.fixture
def variant(bundle, a_report, tmp_path):
    """A copy of the bundle with an engine in it."""

    def make(make_record):
        folder = tmp_path / "out"
        shutil.copytree(bundle.folder, folder)
        make_record(folder)
        (folder / NAME).write_bytes(agent_zip())
        refresh_product(folder, a_report())
        write_manifest(folder, a_report(), "counting", CHOICE)
        return read_bundle(folder)

    return make


def played(folder):
    from kdcompile.remote.agent.worker import Worker

    request = {"id": 1, "op": "build", "onnx": str(folder / "model.onnx"), "precision": "fp32",
               "engine": str(folder / "model.engine")}  # fmt: skip
    assert "ok" in Worker("onnxruntime").answer(request)


def plan(folder):
    (folder / "model.engine").write_bytes(b"plan")
    write_json(
        folder / "model.engine.json",
        {"tensorrt": "10.3.0", "compute_capability": "8.7", "precision": "fp16"},
    )


# ---- triton: a strict reader of the text form of protocol buffers


TOKEN = re.compile(r'\s*(?:#[^\n]*\n\s*)*("(?:[^"\\\n]|\\.)*"|[A-Za-z_]\w*|-?\d+|[\[\]{}:,])')


def parse(text):
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = TOKEN.match(text, at)
        assert match, f"no token at {text[at : at + 20]!r}"
        tokens.append(match[1])
        at = match.end()
    message, rest = fields(tokens, end=None)
    assert not rest
    return message


def fields(tokens, end):
    found = {}
    while tokens and tokens[0] != end:
        name, tokens = tokens[0], tokens[1:]
        assert name.isidentifier(), name
        assert name not in found, f"{name} twice"
        is_message = tokens[0] != ":"
        found[name], tokens = value(tokens if is_message else tokens[1:], is_message)
    assert (tokens[:1] == [end]) == (end is not None)
    return found, tokens[1:]


def value(tokens, is_message):
    if tokens[0] == "[":
        items, tokens = [], tokens[1:]
        while True:
            item, tokens = value(tokens, is_message)
            items.append(item)
            separator, tokens = tokens[0], tokens[1:]
            if separator == "]":
                return items, tokens
            assert separator == ","
    if is_message:
        assert tokens[0] == "{"
        return fields(tokens[1:], "}")
    text = tokens[0]
    if text.startswith('"'):
        return text[1:-1], tokens[1:]
    return (int(text) if re.fullmatch(r"-?\d+", text) else text), tokens[1:]


def config_of(found):
    return parse((found.folder / "triton/crowd/config.pbtxt").read_text())


def test_triton_serves_the_onnx_file_until_there_is_an_engine(bundle):
    assert config_of(bundle) == {
        "name": "crowd",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 0,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": [1, 1, 32, 48]}],
        "output": [{"name": "density", "data_type": "TYPE_FP32", "dims": [1, 1, -1, -1]}],
        "instance_group": [{"count": 1, "kind": "KIND_GPU"}],
    }
    served = (bundle.folder / "triton/crowd/1/model.onnx").read_bytes()
    assert served == bundle.model.read_bytes()


def test_triton_of_an_engine_and_of_a_cpu(tmp_path):
    plan(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    write_triton(tmp_path, 'my "model"/1', "h100", "workstation", ([IMAGE], [LOGITS]))
    (folder,) = (tmp_path / "triton").iterdir()
    config = parse((folder / "config.pbtxt").read_text())
    assert config["name"] == folder.name == "my__model__1"
    assert (config["platform"], config["instance_group"][0]["kind"]) == (
        "tensorrt_plan", "KIND_GPU",
    )  # fmt: skip
    assert config["input"][0]["dims"] == [1, 3, -1, -1]
    assert (folder / "1/model.plan").read_bytes() == b"plan"
    (tmp_path / "model.engine.json").unlink()
    write_triton(tmp_path, "other", "cpu", "cpu", ([IMAGE], [LOGITS]))
    (folder,) = (tmp_path / "triton").iterdir()  # the earlier one is gone
    config = parse((folder / "config.pbtxt").read_text())
    assert config["platform"] == "onnxruntime_onnx"
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]


def test_triton_knows_no_such_type(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(KDError, match="COMPLEX64"):
        write_triton(tmp_path, "x", "cpu", "cpu", ([Tensor("image", "COMPLEX64", (1,))], [LOGITS]))


def test_reader_of_the_test_is_strict():
    for bad in ("name: ", 'name: "a" name: "b"', "input [ { ]", "dims: [ 1 2 ]", "input { a: 1"):
        with pytest.raises((AssertionError, IndexError)):
            parse(bad)


# ---- the model card


def test_card_says_what_was_measured_and_what_was_not(bundle):
    text = (bundle.folder / "MODEL_CARD.md").read_text()
    assert "1.25 people (95 %: 1 to 1.5)" in text
    assert "gate speedup is pending: no board" in text
    assert "nothing was measured on the device itself" in text
    assert "| train | not recorded | not recorded |" in text
    assert "network and data: not stated by the spec" in text
    assert "a <b>CPU" not in text  # no tag gets through
    assert bundle.manifest["files"]["model.onnx"]["sha256"] in text


def test_card_names_the_data_where_the_report_does(a_report, tmp_path):
    data = {"train": {"images": 1200, "sha256": "ab12"}}
    report = a_report("failed", data=data, teacher={"n_val": 7, "val_mae": 0.5})
    write_card(tmp_path, report, ([IMAGE], [LOGITS]))
    text = (tmp_path / "MODEL_CARD.md").read_text()
    assert "| train | 1,200 | ab12 |" in text
    assert "| val | 7 | not recorded |" in text
    assert "gate accuracy failed: +3.1 % against &lt;= 5 %" in text
    assert r"image, float \[1 x 3 x any x any\]" in text


# ---- engines


def test_engine_of_the_compile_stage_comes_with_the_worker(tmp_path):
    def build(folder):
        plan(folder)
        return {}

    artifact = Store(tmp_path / "store").make("compile", "7" * 24, build)
    copy_engine(tmp_path, artifact)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "model.engine", "model.engine.json", NAME,
    }  # fmt: skip
    assert (tmp_path / NAME).read_bytes() == agent_zip()


def infer(found, *arguments):
    command = [sys.executable, str(found.folder / "infer.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_engine_is_run_by_the_worker(variant, tmp_path):
    found = variant(played)
    assert found.engine == found.folder / "model.engine"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    done = [infer(found, tmp_path / "photo.png", *options) for options in ([], ["--onnx"])]
    assert [d.returncode for d in done] == [0, 0], done
    assert done[0].stdout == done[1].stdout
    assert config_of(found)["platform"] == "onnxruntime_onnx"  # ONNX Runtime's is no plan
    found.engine.write_bytes(found.engine.read_bytes() + b"\0")
    refused = infer(found, tmp_path / "photo.png")
    assert refused.returncode == 1
    assert "model.engine is not the file of the manifest" in refused.stderr


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is here")
def test_engine_of_a_tensorrt_that_is_absent_says_so(variant, tmp_path):
    found = variant(plan)
    assert config_of(found)["platform"] == "tensorrt_plan"
    Image.new("L", (40, 30)).save(tmp_path / "photo.png")
    done = infer(found, tmp_path / "photo.png")
    assert done.returncode == 1
    assert "--onnx" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(ToolMissingError) as caught, open_network(found, None, onnx=False):
        pass
    assert caught.value.code == "tensorrt-missing"
    assert "kdcompile run --onnx" in caught.value.fix


def test_command_runs_the_engine_or_the_onnx_file(variant, bundle):
    image = np.random.default_rng(0).normal(size=(1, 1, 32, 48)).astype(np.float32)
    outputs = []
    for found, onnx in ((variant(played), False), (bundle, False), (bundle, True)):
        with open_network(found, None, onnx) as network:
            outputs.append(network(image))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6)
    np.testing.assert_array_equal(outputs[1], outputs[2])
    with pytest.raises(KDError) as caught, open_network(bundle, "python:/usr/bin/python3", False):
        pass
    assert caught.value.code == "engine-missing"


def test_sample_saves_the_prepared_input(bundle, tmp_path):
    Image.new("L", (40, 30), 102).save(tmp_path / "photo.png")
    saved = tmp_path / "in.npy"
    command = [sys.executable, bundle.folder / "infer.py", tmp_path / "photo.png"]
    subprocess.run([*command, "--save-input", saved], check=True)
    values = np.load(saved)
    assert values.shape == (1, 1, 30, 40)  # cpp/infer pads it, and knows what is padding then
    assert values.dtype == np.float32
    assert float(np.abs(values).max()) < 1e-6  # 102 / 255 is the mean


# ---- refresh, licences, distributions


def test_refresh_describes_an_engine_that_came_later(bundle, variant):
    before = json.loads((bundle.folder / "sbom.cdx.json").read_text())
    found = variant(plan)
    after = json.loads((found.folder / "sbom.cdx.json").read_text())
    assert [c for c in after["components"] if c["type"] == "library"] == [
        c for c in before["components"] if c["type"] == "library"
    ]
    networks = {c["name"]: c for c in after["components"] if c["type"] != "library"}
    assert list(networks) == ["model.onnx", "model.engine"]
    built = {"name": "kdcompile:tensorrt", "value": "10.3.0"}
    assert built in networks["model.engine"]["properties"]
    assert (found.folder / "triton/crowd/1/model.plan").read_bytes() == b"plan"
    assert "SHA-256 of model.engine" in (found.folder / "MODEL_CARD.md").read_text()


def test_used_follows_what_is_required():
    found = {one.name: one for one in used()}
    assert found["jinja2"].needs == ("markupsafe",)
    assert "markupsafe" in found
    assert "pytest" not in found  # an extra of development
    assert found["numpy"].version == np.__version__
    assert found["numpy"].files_sha256
    with pytest.raises(KDError) as caught:
        used("no-such-distribution")
    assert caught.value.code == "not-installed"


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ("License-Expression: MIT OR Apache-2.0\nLicense: BSD", "MIT OR Apache-2.0"),
        ("License: BSD", "BSD"),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License", "MIT License"),
        ("Classifier: License :: Other/Proprietary License", "Other/Proprietary License"),
        ("Classifier: Programming Language :: C", UNKNOWN),
        ("License: " + "a whole text " * 30, UNKNOWN),
    ],
)
def test_licence_by_the_metadata(tmp_path, lines, wanted):
    (tmp_path / "x-1.dist-info").mkdir()
    (tmp_path / "x-1.dist-info/METADATA").write_text(f"Name: x\nVersion: 1\n{lines}\n")
    (here,) = importlib.metadata.distributions(path=[str(tmp_path)])
    assert licence_of(here)[0] == wanted


def test_list_says_unknown_plainly():
    packages = [Used("a", "1", "MIT|X", "License", None, None, ()),
                Used("b", "2", UNKNOWN, "", None, None, ())]  # fmt: skip
    text = table(packages)
    assert "| a | 1 | MIT\\|X | License |" in text
    assert "| b | 2 | unknown | - |" in text
    assert text.endswith("\nUnknown: b.\n")
