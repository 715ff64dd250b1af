"""The list of software is CycloneDX 1.5, the same for the same content, and true."""

import ast
import json
from importlib.metadata import distributions, packages_distributions
from pathlib import Path
from urllib.parse import quote

import pytest

from kdcompile.bundle.distributions import UNKNOWN, Used, normal, used
from kdcompile.bundle.sbom import write_sbom
from kdcompile.core.files import file_sha256

ROOT = Path(__file__).parents[2]
OF_DEV = {"pytest", "setuptools"}  # of the plug-in, which pytest loads, and of the build
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


def test_it_lists_what_is_installed(written):
    """Against the metadata of this interpreter, read another way than the list is made."""
    components = json.loads(written(used()))["components"]
    listed = {c["name"]: c for c in components if c["type"] == "library"}
    here = {normal(d.metadata["Name"]): d for d in distributions()}
    assert {name: c["version"] for name, c in listed.items()} == {
        name: here[name].version for name in listed
    }
    for name, component in listed.items():
        assert component["purl"] == f"pkg:pypi/{name}@{quote(here[name].version, safe='.')}"


def test_it_lists_every_library_that_the_source_imports(written):
    components = json.loads(written(used()))["components"]
    listed = {c["name"] for c in components}
    wheels = packages_distributions()
    imported = set()
    for room in ("kdcompile", "calib", "kernels", "targets"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                imported |= {name.split(".")[0] for name in names}
    owners = {normal(wheel) for name in imported - OF_DEV for wheel in wheels.get(name, ())}
    assert {"torch", "numpy", "onnx", "pydantic"} <= owners
    assert owners <= listed, "a library that no extra but `dev` brings"
