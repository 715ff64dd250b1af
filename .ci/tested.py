"""The tested set of dependencies, each file by its SHA-256: `write`, `install` or `audit`.

    .venv/bin/python .ci/tested.py write     # what pip resolves today: `make tested`
    .venv/bin/python .ci/tested.py install   # exactly that, and kdcompile itself: `.ci/run`
    .venv/bin/python .ci/tested.py audit     # vulnerabilities of what is installed: `make lint`

A set is of one Python and one platform, those that its tests ran on. Elsewhere, and where no index
has all of it, what `pyproject.toml` and `constraints.txt` allow is installed, and standard error
says so. A file of the set that has another hash is an error.
"""

import json
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ".[cpu,rtx,dev]"
LOOSE = ["-c", "constraints.txt", "-e", EXTRAS]
INDEX = "https://pypi.org/pypi/pip/json"  # what pip-audit asks, a page for each distribution
AUDIT_S = 180.0  # of pip-audit, which asks for each distribution in turn
DIFFERS = "DO NOT MATCH THE HASHES"  # pip's own words


def tag() -> str:
    """This Python and platform, such as `cp311-linux-x86_64`."""
    platform = sysconfig.get_platform().replace(".", "_")
    return f"cp{sys.version_info.major}{sys.version_info.minor}-{platform}"


def tested() -> Path:
    """The file of this Python and platform."""
    return ROOT / ".ci" / f"tested-{tag()}.txt"


def pip(*words: str, stderr: int | None = None) -> "subprocess.CompletedProcess[str]":
    """Run pip of this interpreter in the repository."""
    command = [sys.executable, "-m", "pip", "install", *words]
    return subprocess.run(command, cwd=ROOT, text=True, check=False, stderr=stderr)


def lines_of(report: dict[str, Any]) -> list[str]:
    """Requirements with hashes, sorted, of pip's installation report; without this project."""
    found = []
    for entry in report["install"]:
        origin, about = entry["download_info"], entry["metadata"]
        if "archive_info" in origin:
            sha256 = origin["archive_info"]["hashes"]["sha256"]
            found.append(f"{about['name'].lower()}=={about['version']} --hash=sha256:{sha256}")
    return sorted(found)


def write() -> int:
    """Resolve anew and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ("--dry-run", "--ignore-installed", "--quiet", "--report", str(report))
        code = pip(*words, *LOOSE).returncode
        if code:
            return code
        lines = lines_of(json.loads(report.read_text(encoding="utf-8")))
    head = f"# Tested on {tag()}: written by `make tested`, installed by `.ci/run`.\n"
    tested().write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


def install() -> int:
    """Install the tested set where it can be, else what is allowed, and say which."""
    why = f"there is none for {tag()}"
    if tested().is_file():
        words = ("-q", "--require-hashes", "--no-deps", "-r", str(tested()))
        done = pip(*words, stderr=subprocess.PIPE)
        if done.returncode == 0:  # setuptools is among them
            words = ("-q", "--no-deps", "--no-build-isolation", "-e", ".")
            done = pip(*words, stderr=subprocess.PIPE)
            sys.stderr.write(done.stderr if done.returncode else "")
            return done.returncode
        sys.stderr.write(done.stderr)
        if DIFFERS in done.stderr:
            return done.returncode
        why = "an index does not have all of it"
    sys.stderr.write(f"NOT the tested set of dependencies: {why}; installing what is allowed\n")
    return pip("-q", *LOOSE).returncode


def audit(timeout_s: float = 10.0) -> int:
    """Print what pip-audit finds in this environment; 1 where there is something."""
    try:
        with urllib.request.urlopen(INDEX, timeout=timeout_s):
            pass
    except OSError as error:
        return skipped(f"no index is reachable: {error}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = ("--local", "--skip-editable", "--progress-spinner", "off", "-f", "json", "-o", out)
        command = [sys.executable, "-m", "pip_audit", *map(str, words)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=AUDIT_S
            )
        except subprocess.TimeoutExpired:
            return skipped(f"pip-audit was not done in {AUDIT_S:g} s")
        if not out.is_file():
            return skipped(" / ".join(done.stderr.strip().splitlines()[-2:]) or "no pip-audit")
        found = json.loads(out.read_text(encoding="utf-8"))["dependencies"]
    return told(found)


def told(found: list[dict[str, Any]]) -> int:
    """Print the vulnerabilities, and what could not be looked up."""
    bad = [(one, each) for one in found for each in one.get("vulns", ())]
    for one, each in bad:
        fixed = ", ".join(each["fix_versions"]) or "no version"
        sys.stderr.write(f"{one['name']} {one['version']}: {each['id']}, fixed in {fixed}\n")
    missed = [str(one["name"]) for one in found if "skip_reason" in one]
    if len(missed) == len(found):
        return skipped(f"the index knows none of {len(found)} distributions by their versions")
    if missed:
        sys.stderr.write(f"pip-audit did not find {len(missed)}: {', '.join(missed)}\n")
    count = len(found) - len(missed)
    sys.stderr.write(f"pip-audit: {len(bad)} known vulnerabilities of {count} distributions\n")
    return 1 if bad else 0


def skipped(why: str) -> int:
    """Say that nothing was audited."""
    sys.stderr.write(f"pip-audit SKIPPED, nothing was audited: {why}\n")
    return 0


if __name__ == "__main__":
    sys.exit({"write": write, "install": install, "audit": audit}[sys.argv[1]]())
