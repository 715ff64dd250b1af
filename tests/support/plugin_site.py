"""Distributions with plug-ins, installed by hand into a folder that Python imports from."""

import shutil
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "plugins" / "package"


def install(site, name, version, entries, files=None):
    """A distribution: metadata with its entry points, `{kind: {name: value}}`, and its files."""
    site.mkdir(exist_ok=True)
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for kind, values in entries.items():
        lines += [f"[kdcompile.{kind}]", *(f"{one} = {value}" for one, value in values.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for path, text in (files or {}).items():
        (site / path).write_text(text)
    return info


def install_package(site, version=None):
    """The package of tests/plugins, as its own pyproject.toml describes it."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    groups = project["entry-points"]
    entries = {group.removeprefix("kdcompile."): values for group, values in groups.items()}
    info = install(site, project["name"], version or project["version"], entries)
    if not (site / "acme_kd").exists():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE / "acme_kd", site / "acme_kd", ignore=ignored)
    return info
