"""The list of software is CycloneDX 1.5, the same for the same content, and true."""

import json

import pytest

from kdcompile.bundle.distributions import UNKNOWN, Used, used
from kdcompile.bundle.sbom import write_sbom
from kdcompile.core.files import file_sha256

PACKAGES = [
    Used("a", "1.0+cpu", "MIT OR Apache-2.0", "License-Expression", "ab" * 32, "cd" * 32, ("b",)),
    Used("b", "2", "BSD License", "Classifier", None, None, ()),
    Used("kdcompile", "3", UNKNOWN, "", None, None, ("a", "b")),
]


@pytest.fixture
def written(a_report, tmp_path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    (tmp_path / "model.onnx").write_bytes(b"network")

    def write(packages=PACKAGES, **details):
        write_sbom(tmp_path, a_report(**details), packages)
        return (tmp_path / "sbom.cdx.json").read_text()

    return write


@pytest.mark.parametrize("packages", [PACKAGES, None], ids=["made-up", "installed"])
def test_official_schema_accepts_it(written, monkeypatch, packages):
    schema = pytest.importorskip("cyclonedx.schema")
    validation = pytest.importorskip("cyclonedx.validation.json")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    text = written(used() if packages is None else packages)
    assert '"timestamp": "1970-01-01T00:00:00Z"' in text
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_5)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"library"', '"shelf"')) is not None


def test_same_content_same_bytes(written, tmp_path):
    first = written()
    assert written() == first
    assert "timestamp" not in first
    (tmp_path / "model.onnx").write_bytes(b"another network")
    assert json.loads(written())["serialNumber"] != json.loads(first)["serialNumber"]


def test_components_and_links(written, tmp_path):
    document = json.loads(written())
    network, a, b, own = document["components"]
    sha = file_sha256(tmp_path / "model.onnx")
    assert network["type"] == "machine-learning-model"
    assert network["hashes"] == [{"alg": "SHA-256", "content": sha}]
    (metric,) = network["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metric["value"] == "1.25 people"
    assert metric["confidenceInterval"] == {"lowerBound": "1", "upperBound": "1.5"}
    assert a["purl"] == a["bom-ref"] == "pkg:pypi/a@1.0%2Bcpu"
    assert a["licenses"] == [{"expression": "MIT OR Apache-2.0"}]
    assert a["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert b["licenses"] == [{"license": {"name": "BSD License"}}]
    assert not {"licenses", "hashes", "properties"} & set(own)
    links = {row["ref"]: row["dependsOn"] for row in document["dependencies"]}
    assert links["bundle"] == [f"sha256:{sha}"]
    assert links[f"sha256:{sha}"] == [own["bom-ref"]]
    assert links[a["bom-ref"]] == [b["bom-ref"]]
    assert set(links) == {"bundle", *(c["bom-ref"] for c in document["components"])}
