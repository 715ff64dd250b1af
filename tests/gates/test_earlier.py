"""Which network of an earlier bundle runs: of its engine, the file that it was built from."""

import json

import numpy as np
import onnx
import pytest
from onnx_graphs import chain

from kdcompile.bundle.manifest import Bundle
from kdcompile.core.files import file_sha256
from kdcompile.data.preprocess import Preprocess
from kdcompile.gates.reference_bundle import EarlierNetwork

IMAGE = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)


@pytest.fixture
def earlier(tmp_path):
    """A merged bundle: int8 was predicted and deployed, the board's engine is fp16 by a flag."""
    (tmp_path / "kit").mkdir()
    onnx.save(chain(2), tmp_path / "model.onnx")
    onnx.save(chain(3), tmp_path / "kit/student_fp32.onnx")
    (tmp_path / "model.engine").write_bytes(b"engine")
    record = {"precision": "fp16", "onnx_sha256": file_sha256(tmp_path / "kit/student_fp32.onnx")}
    (tmp_path / "model.engine.json").write_text(json.dumps(record))
    (tmp_path / "manifest.json").write_text("{}")
    files = {p.relative_to(tmp_path).as_posix(): {"sha256": file_sha256(p)}
             for p in tmp_path.rglob("*") if p.is_file()}  # fmt: skip

    def make(engine):
        manifest = {"name": "crowd", "target": "jetson", "precision": "int8",
                    "model": "model.onnx", "engine": engine, "files": files}  # fmt: skip
        prepare = Preprocess(3, (0.5,) * 3, (0.25,) * 3, (16, 16), (16, 16))
        return EarlierNetwork(Bundle(tmp_path, manifest), prepare)

    return make


@pytest.mark.parametrize(
    ("engine", "precision", "layers"), [("model.engine", "fp16", 3), (None, "int8", 2)]
)
def test_the_network_is_the_one_that_the_engine_was_built_from(earlier, engine, precision, layers):
    from kdcompile.debug.runners import OnnxSide

    runner, about = earlier(engine).runner(None, 1, as_written=True)
    assert about.precision == precision
    assert about.ran.startswith("its ONNX file by onnxruntime")
    model = chain(layers)
    expected = OnnxSide(model).run(IMAGE)[model.graph.output[0].name]
    np.testing.assert_allclose(runner(IMAGE), expected, atol=1e-6)
