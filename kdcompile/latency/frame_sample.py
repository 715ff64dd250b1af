"""A deployed sample and the image files that it is timed on, packed into one file."""

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from PIL import Image

from kdcompile.backends.engine import record_of
from kdcompile.bundle import carried_code, python_sample
from kdcompile.bundle.manifest import Bundle
from kdcompile.core.arrays import open_arrays
from kdcompile.core.backends import of_record
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_text
from kdcompile.core.readers import LARGEST_TEXT, read_bounded, read_json
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import INPUTS
from kdcompile.latency.subject import DEFAULT
from kdcompile.remote.archive import NAME, agent_zip
from kdcompile.remote.frame import ENGINE, SAMPLE, TASK, sizes_of, write_manifest

OPENER = "opener.py"
FOLDER, MOST, QUALITY = "photos", 16, 90
BY_FILES = "the engine's tensors go through .npz files, which costs a part of its inference"
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
Pictures = Sequence[tuple[str, bytes]]  # names with their endings, and image files


@dataclass(frozen=True)
class Shipped:
    """What a deployed sample consists of, beside `infer.py`.

    Args:
        task: as a bundle's manifest names it.
        classes: their names, where they have any.
        files: `preprocess.json`, `task.json` of a task with settings, the code of a decode, and
            `model.onnx`, or `model.engine` with what runs it; by name.
        precision: of the network.
        backend: that runs it.
    """

    task: str
    classes: Sequence[str] | None
    files: Mapping[str, Path | bytes]
    precision: str
    backend: str = DEFAULT


def shipped_in(bundle: Bundle, allow_code: bool = False) -> Shipped:
    """The sample of a bundle: its engine where it has one, as `infer.py` does.

    Raises:
        KDError: `bundle-code`, its decode is code of its own, which is not allowed.
    """
    about, backend = bundle.manifest, DEFAULT
    files = {"preprocess.json": bundle.file(about["preprocess"]), "model.onnx": bundle.model}
    if bundle.engine is not None:
        backend = of_record(record_of(bundle.engine))
        files |= {ENGINE: bundle.engine, f"{ENGINE}.json": bundle.file(f"{about['engine']}.json")}
        files |= {OPENER: bundle.file(OPENER)} if OPENER in about["files"] else {}
    shipped = run_by(files)
    if TASK in about["files"]:
        shipped[TASK] = bundle.file(TASK)
    shipped |= carried_code.decode_files(bundle, allow_code)
    return Shipped(about["task"], about.get("classes"), shipped, about["precision"], backend)


def run_by(files: Mapping[str, Path]) -> dict[str, Path | bytes]:
    """Of a deployed network's files those that `infer.py` takes: its engine where it has one.

    An engine brings its record, and what opens it: a file of its own, or the agent.
    """
    wanted: dict[str, Path | bytes] = {"preprocess.json": files["preprocess.json"]}
    if ENGINE not in files:
        return wanted | {"model.onnx": files["model.onnx"]}
    wanted |= {name: files[name] for name in (ENGINE, f"{ENGINE}.json")}
    return wanted | ({OPENER: files[OPENER]} if OPENER in files else {NAME: agent_zip()})


def packed(folder: Path, shipped: Shipped, pictures: Pictures) -> Path:
    """One file of the sample with its photos, which a frame worker loads.

    Raises:
        KDError: `frame-images`, its network takes no image.
    """
    inside = folder / "sample"
    (inside / FOLDER).mkdir(parents=True)
    for name, content in shipped.files.items():
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (inside / name).write_bytes(content)
        else:
            shutil.copyfile(content, inside / name)
    preprocess = read_json(inside / "preprocess.json")
    if INPUTS in preprocess and preprocess["image"] is None:
        raise no_photos("the network takes named tensors and no image: it has no whole frame")
    write_manifest(str(inside), shipped.task, shipped.classes, list(shipped.files))
    write_text(inside / SAMPLE, python_sample.text(shipped.task))
    for number, (name, content) in enumerate(pictures):
        (inside / FOLDER / f"{number:03d}{Path(name).suffix}").write_bytes(content)
    path = folder / "sample.zip"
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for one in sorted(path for path in inside.rglob("*") if path.is_file()):
            archive.write(one, one.relative_to(inside).as_posix())
    return path


def pictures_of(photos: Sequence[Photo]) -> list[tuple[str, bytes]]:
    """Image files of some of the photos, spread evenly; of pixels in memory, JPEG made of them."""
    step = max(1, len(photos) // MOST)
    return [_picture(photo) for photo in photos[::step][:MOST] if not photo.tensors]


def _picture(photo: Photo) -> tuple[str, bytes]:
    if photo.path is not None:
        return photo.path.name, read_bounded(photo.path, LARGEST_TEXT)
    if photo.encoded is not None:
        return photo.name, photo.encoded
    assert photo.array is not None, "a photo has a path, an array or encoded bytes"
    return f"{photo.name}.jpg", _as_jpeg(photo.array)


def _as_jpeg(pixels: Any) -> bytes:
    found = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
        found, "JPEG", quality=QUALITY
    )
    return found.getvalue()


def pictures_at(paths: Sequence[Path]) -> list[tuple[str, bytes]]:
    """Image files, those of folders, and the photos of test packs, as many as are timed.

    Raises:
        KDError: `frame-images`.
    """
    found: list[Photo] = []
    for path in paths:
        if (path / "pack.json").is_file():
            found += _packed_photos(path)
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            found += [Photo(p.name, path=p) for p in inside]
        else:
            found.append(Photo(path.name, path=path))
    try:
        pictures = pictures_of(found)
    except OSError as error:
        raise no_photos(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise no_photos(f"one of {', '.join(map(str, paths))}: {error}") from error
    if not pictures:
        raise no_photos(f"{', '.join(map(str, paths))}: no image file is there")
    for name, content in pictures:
        try:
            Image.open(io.BytesIO(content)).close()
        except (OSError, Image.DecompressionBombError) as error:
            raise no_photos(f"{name} is no image that can be read") from error
    return pictures


def _packed_photos(folder: Path) -> list[Photo]:
    """The photos of a test pack's first file; scaled already to what the network takes."""
    try:
        with open_arrays(folder / "photos_000.npz") as arrays:
            pixels = {name: arrays[name] for name in arrays if name.isdigit()}
    except (OSError, ValueError) as error:
        raise no_photos(f"{folder / 'photos_000.npz'}: {error}") from error
    found = [(name, a) for name, a in pixels.items() if a.ndim == 3 and a.dtype == np.uint8]
    return [Photo(name, array=array) for name, array in found[:MOST]]


def described(shipped: Shipped, pictures: Pictures) -> str:
    """Which sample is timed on what, in words."""
    size = sizes_of(io.BytesIO(content) for _, content in pictures)
    text = f"infer.py by {shipped.backend} on {len(pictures)} image files, {size}"
    return f"{text}; {BY_FILES}" if NAME in shipped.files else text


def no_photos(why: str) -> KDError:
    """There is nothing to time a frame on."""
    return KDError(
        "frame-images",
        f"the whole frame cannot be timed: {why}",
        where="the sample",
        fix="give image files, a folder of them or a test pack: --images PATH",
    )
