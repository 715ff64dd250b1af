"""What the battery carries to the GPU machine and brings back, as files under its limits.

There: archives and parts of archives are unpacked into the work folder as they come, and the
project is laid out as a package. Back: the state, the log, and the results as an archive, all
written whole; what is half done as parts of an archive, as far as there is room.
"""

import io
import json
import math
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from gpu_plan import Machine

ROOT = Path(__file__).parents[1]
MEMBERS = ("calib", "kernels", "targets", "examples")  # packages that lie beside kdcompile/
STATE, LOG, RESULTS, KEPT = "state.json", "log.txt", "results.tar.gz", "kept.tar.gz"
PART_BYTES = 15 * 2**20
LOG_BYTES = 4 * 2**20  # of a log, its end is what matters
RESULT_BYTES = 8 * 2**20  # of one file among the results
KEPT_PARTS = 4


def write(path: Path, data: bytes) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Replace a file of JSON in one step."""
    write(path, (json.dumps(value, indent=1) + "\n").encode())


def packed(folder: Path, kind: Literal["gz", "xz"] = "gz", most: float = math.inf) -> bytes:
    """A folder as an archive, without files of more than so many bytes or being written."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{kind}") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".tmp"):
            if path.stat().st_size <= most:
                archive.add(path, path.relative_to(folder).as_posix())
    return stream.getvalue()


def unpacked(data: bytes, folder: Path) -> None:
    """The files of an archive into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="data")


def parts_of(data: bytes, name: str, part_bytes: int) -> list[tuple[str, bytes]]:
    """An archive in parts; each name says how many there are."""
    count = max(1, -(-len(data) // part_bytes))
    pieces = [data[i * part_bytes : (i + 1) * part_bytes] for i in range(count)]
    return [(f"{name}.{i:02d}of{count:02d}", piece) for i, piece in enumerate(pieces)]


def joined(folder: Path, name: str) -> bytes | None:
    """The archive whose parts lie in a folder, or None where not all of them do."""
    found = sorted(folder.glob(f"{name}.??of??"))
    if not found or len(found) != int(found[0].name[-2:]):
        return None
    return b"".join(path.read_bytes() for path in found)


def lay_out(site: Path) -> None:
    """The project as a package that can be imported without an installation."""
    if (site / "kdcompile" / "kernels").is_dir():
        return
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kdcompile", site / "kdcompile", ignore=unwanted, dirs_exist_ok=True)
    for name in MEMBERS:
        shutil.copytree(ROOT / name, site / "kdcompile" / name, ignore=unwanted, dirs_exist_ok=True)


def receive(carried: Path, work: Path) -> list[str]:
    """Take what a call brought into the work folder; what was done, in words.

    Groups whose last part has come are unpacked: TensorRT's parts are left as they are, since they
    have a program of their own to join them.
    """
    told = []
    for path in sorted(carried.iterdir()):
        if path.name == "site.zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(work / "site")
        elif path.name == "cache.tar.xz" and not (work / "cache").is_dir():
            unpacked(path.read_bytes(), work / "cache")
        elif path.name == "commit.txt":
            shutil.copy(path, work / path.name)
        elif path.name == "back" and not (work / STATE).is_file():
            told.append(resume(path, work))
        elif ".tar.gz." in path.name:
            (work / "parts").mkdir(exist_ok=True)
            shutil.copy(path, work / "parts" / path.name)
    for name in {p.name.split(".")[0] for p in (work / "parts").glob("*.tar.gz.*")}:
        data = None if (work / name).is_dir() else joined(work / "parts", f"{name}.tar.gz")
        if data is not None:
            unpacked(data, work / name)
            told.append(f"{name} is whole")
    return told


def resume(back: Path, work: Path) -> str:
    """Go on from what an earlier call brought back."""
    if (back / RESULTS).is_file():
        unpacked((back / RESULTS).read_bytes(), work / "results")
        _copied(work / "results" / "tuned", work / "tuned")
    kept = joined(back, KEPT)
    if kept is not None:
        unpacked(kept, work / "kept")
    if (back / LOG).is_file():
        shutil.copy(back / LOG, work / LOG)
    shutil.copy(back / STATE, work / STATE)
    return "goes on from what an earlier call brought back"


def bring_back(work: Path, out: Path, with_kept: bool) -> list[str]:
    """State, log and results into the folder that comes back; what had no room, in words."""
    left_out: list[str] = []
    _copied(work / "tuned", work / "results" / "tuned")
    write(out / STATE, (work / STATE).read_bytes())
    if (work / LOG).is_file():
        write(out / LOG, (work / LOG).read_bytes()[-LOG_BYTES:])
    sizes = {p.name: p.stat().st_size for p in (work / "results").rglob("*") if p.is_file()}
    left_out += [f"{name} of {size} bytes" for name, size in sizes.items() if size > RESULT_BYTES]
    data = packed(work / "results", most=RESULT_BYTES)
    if len(data) <= Machine.file_bytes:
        write(out / RESULTS, data)
    else:
        left_out.append(f"{RESULTS} of {len(data)} bytes: the last one stays")
    if with_kept and (work / "kept").is_dir():
        parts = parts_of(packed(work / "kept"), KEPT, PART_BYTES)
        for old in out.glob(f"{KEPT}.*"):
            old.unlink()
        if len(parts) <= KEPT_PARTS:
            for name, data in parts:
                write(out / name, data)
        else:
            left_out.append(f"what is half done: {len(parts)} parts of {PART_BYTES} bytes")
    return left_out


def _copied(source: Path, target: Path) -> None:
    """The choices of launch configurations, which are small; what else lies there is not."""
    for path in source.glob("tuned-*.json"):
        write(target / path.name, path.read_bytes())


def tree_bytes(paths: Sequence[Path]) -> int:
    """Bytes of files."""
    return sum(path.stat().st_size for path in paths)
