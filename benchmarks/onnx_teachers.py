"""ONNX files as teachers: loaded, made smaller, distilled without labels, exported, compared.

    python benchmarks/onnx_teachers.py FOLDER [--case NAME ...] [--steps 200]

FOLDER holds the files of `CASES`: those that packages of PyPI ship (`pip download --no-deps
rapidocr-onnxruntime silero-vad`, unpacked), and the reference networks of
`benchmarks/reference_networks.py`. Inputs are made here: drawn words for readers of text, else
smooth noise, as photos and sound are not white. A row a case goes into onnx_teachers.csv beside
this file; a case that is there is kept.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from csv_tables import kept
from csv_tables import write as write_table
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
TABLE = HERE / "onnx_teachers.csv"
SAMPLES = {"train": 64, "val": 16, "test": 16}
Shape = tuple[int, ...]


def smooth(random: np.random.Generator, shape: Shape) -> NDArray[np.float32]:
    """Noise whose power falls with the frequency along the last axes that are long."""
    values = random.standard_normal(shape)
    axes = [axis for axis, size in enumerate(shape) if size > 8]
    for axis in axes:
        spectrum = np.fft.rfft(values, axis=axis)
        falls = 1 / np.sqrt(1 + np.arange(spectrum.shape[axis]))
        view = [1] * len(shape)
        view[axis] = -1
        values = np.fft.irfft(spectrum * falls.reshape(view), n=shape[axis], axis=axis)
    return (values / max(float(values.std()), 1e-6)).astype(np.float32)


def text(random: np.random.Generator, shape: Shape) -> NDArray[np.float32]:
    """Words on a light ground, as readers of text expect them: -1 to 1, [1, 3, H, W]."""
    _, _, height, width = shape
    ground, ink = random.integers(170, 256, 3), random.integers(0, 90, 3)
    image = Image.new("RGB", (width, height), tuple(map(int, ground)))
    draw = ImageDraw.Draw(image)
    letters = list("ABCDEFGHKLMNPRSTUVXYZabdefghknrstuvxyz0123456789")
    for line in range(max(1, height // 48)):
        word = "".join(random.choice(letters, int(random.integers(3, 9))))
        place = (
            int(random.integers(2, max(3, width // 3))),
            48 * line + int(random.integers(4, 16)),
        )
        draw.text(place, word, tuple(map(int, ink)), font=ImageFont.load_default(24))
    values = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    return (values + 0.03 * random.standard_normal(shape)).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A file, its inputs by name with their shapes, and a batch that a CPU trains in seconds."""

    file: str
    inputs: Mapping[str, Shape]
    batch: int = 4
    whole: Mapping[str, int] = field(default_factory=dict)  # inputs of one whole number
    draw: Callable[[np.random.Generator, Shape], NDArray[np.float32]] = smooth


OCR, VAD = "rapidocr_onnxruntime/models/", "silero_vad/data/"
CASES = {
    "rapidocr detector": Case(
        OCR + "ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 128, 128)}, draw=text
    ),
    "rapidocr recogniser": Case(
        OCR + "ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 160)}, draw=text
    ),
    "rapidocr direction": Case(
        OCR + "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}, draw=text
    ),
    "silero-vad, 16 kHz": Case(
        VAD + "silero_vad_half.onnx", {"input": (1, 576), "state": (2, 1, 128)}
    ),
    "silero-vad": Case(
        VAD + "silero_vad.onnx", {"input": (1, 576), "state": (2, 1, 128), "sr": ()},
        whole={"sr": 16000},
    ),
    "ResNet-50": Case("resnet-50_224.onnx", {"image": (1, 3, 224, 224)}, batch=2),
    "SSD-MobileNet": Case("ssd-mobilenet-v1_300.onnx", {"image": (1, 3, 300, 300)}, batch=2),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What came of a case; an `error` where there is no bundle."""

    case: str
    inputs: str
    params: int | str = ""
    student: int | str = ""
    share: float | str = ""
    start: float | str = ""
    end: float | str = ""
    parity: float | str = ""
    precision: str = ""
    verdict: str = ""
    error: str = ""
    seconds: float = 0.0


def write(case: Case, files: Path, folder: Path, steps: int) -> None:
    """The samples and the spec of a case."""
    random = np.random.default_rng(0)
    for split, count in SAMPLES.items():
        arrays = {
            name: np.full((count, *shape), case.whole[name])
            if name in case.whole
            else np.stack([case.draw(random, shape) for _ in range(count)])
            for name, shape in case.inputs.items()
        }
        np.savez(folder / f"{split}.npz", **arrays)
    inputs = "\n".join(
        f'{name} = {{ shape = {list(shape)}, dtype = "{_dtype(case, name)}" }}'
        for name, shape in case.inputs.items()
    )
    spec = f"""target = "jetson"
task.kind = "generic"
teacher.onnx = {json.dumps(str((files / case.file).resolve()))}
student.budget.width = 0.5
distill = {{ steps = {steps}, batch = {case.batch}, evaluations = 4 }}
quantize = {{ precision = "auto", images = 16 }}
gates.accuracy = {{ max_increase = "100%", margin = "110%", required = false }}

[data]
format = "tensors"
root = "."
train = "train.npz"
val = "val.npz"
test = "test.npz"

[export.inputs]
{inputs}
"""
    (folder / "kdcompile.toml").write_text(spec, encoding="utf-8")


def _dtype(case: Case, name: str) -> str:
    return "int64" if name in case.whole else "float32"


def measured(name: str, case: Case, files: Path, folder: Path, steps: int) -> Row:
    """Build a case, and what its bundle says."""
    told = ", ".join(f"{n} {list(shape)}" for n, shape in case.inputs.items())
    write(case, files, folder, steps)
    began = time.monotonic()
    command = [sys.executable, "-m", "kdcompile", "build", "kdcompile.toml", "-o", "bundle"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = round(time.monotonic() - began, 1)
    if not (folder / "bundle" / "report.json").is_file():
        lines = [line for line in done.stderr.splitlines() if line.startswith("error[")]
        return Row(name, told, error=(lines or done.stderr.splitlines())[-1][:300], seconds=seconds)
    report = json.loads((folder / "bundle" / "report.json").read_text(encoding="utf-8"))
    details: dict[str, Any] = report["details"]
    teacher, student = (details["costs"][who]["params"] for who in ("teacher", "student"))
    trained = details["distill"]
    return Row(
        name, told, teacher, student, round(student / teacher, 3),
        round(trained["initial"]["val_rel_error"], 4), round(trained["val_rel_error"], 4),
        details["parity"]["student"]["max_rel_error"], details["choice"]["precision"],
        report["verdict"], seconds=seconds,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Every case that is not in the table yet."""
    parser = argparse.ArgumentParser(description="ONNX files as teachers")
    parser.add_argument("files", type=Path)
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "onnx_teachers")
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)
    names = [column.name for column in fields(Row)]
    rows = {case: row for (case,), row in kept(TABLE, ["case"]).items()}
    for name in options.case or CASES:
        if name in rows and not options.case:
            continue
        folder = options.work / name.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        row = measured(name, CASES[name], options.files, folder, options.steps)
        rows[name] = {key: str(value) for key, value in asdict(row).items()}
        print(rows[name], flush=True)
        write_table(TABLE, names, [rows[n] for n in CASES if n in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
