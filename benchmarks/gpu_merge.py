"""Take what the battery brought back into the benchmarks' files and the pages made from them."""

import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import csv_tables
import gpu_files
from gpu_steps import ROOT

PAGES = (("make", "kernels-docs"), (sys.executable, "benchmarks/distill.py", "report"))


def merge(folder: Path, into: Path) -> list[str]:
    """The results of a call into the benchmarks' folder; what was taken, in words.

    Raises:
        SystemExit: there are none, or they are those of a dry run, which measures nothing.
    """
    if not (folder / gpu_files.STATE).is_file() or not (folder / gpu_files.RESULTS).is_file():
        raise SystemExit(f"{folder} holds no results of the battery")
    state = json.loads((folder / gpu_files.STATE).read_text())
    if state["backend"] != "cuda":
        raise SystemExit("a dry run measures nothing: its results are not taken")
    told = []
    with tempfile.TemporaryDirectory() as name:
        results = Path(name)
        gpu_files.unpacked((folder / gpu_files.RESULTS).read_bytes(), results)
        tables = (results / "kernels.csv", results / "distill" / "distill.csv")
        told += [_rows(path, into / path.name) for path in tables if path.is_file()]
        told += [_records(p, into / p.name) for p in results.glob("engines.json")]
        told += [_records(p, into / p.name) for p in (results / "distill").glob("distill.json")]
        whole = ("ncu.csv", "smoke.jsonl", "ranking_h100.json", "searched_card.json")
        for path in (p for n in whole for p in results.glob(n)):
            shutil.copy(path, into / ("gpu_" * (path.suffix in (".csv", ".jsonl")) + path.name))
            told.append(f"{path.name}: replaced")
        told += [f"{path.name}: here as {path}" for path in _kept(results, folder)]
    return told


def _rows(source: Path, target: Path) -> str:
    """Add the rows that are not there yet."""
    with source.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    known: list[list[str]] = []
    if target.is_file():
        with target.open(newline="") as file:
            first, *known = list(csv.reader(file))
        if first != header:
            raise SystemExit(f"{target} has other columns than {', '.join(header)}")
    fresh = [row for row in rows if row not in known]
    csv_tables.write(target, header, (dict(zip(header, r, strict=True)) for r in (*known, *fresh)))
    return f"{target.name}: {len(fresh)} rows more"


def _records(source: Path, target: Path) -> str:
    """Add records by name; one that is there is replaced."""
    fresh = json.loads(source.read_text())
    known = json.loads(target.read_text()) if target.is_file() else {}
    gpu_files.write_json(target, known | fresh)
    return f"{target.name}: {len(fresh)} records"


def _kept(results: Path, folder: Path) -> list[Path]:
    """The calibration and the students go where the results are: a person decides about them."""
    found = []
    for name in ("config", "distill/models"):
        if (results / name).is_dir():
            place = folder / name.replace("/", "_")
            shutil.copytree(results / name, place, dirs_exist_ok=True)
            found.append(place)
    return found


def pages() -> None:
    """Write the pages again."""
    for command in PAGES:
        subprocess.run(command, cwd=ROOT, check=True)
