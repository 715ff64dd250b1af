"""Annotations of points, and lists of splits, that must be refused."""

import json
import os
import shutil
from pathlib import Path

from bad_inputs import SPEC, BadInput, project, replace
from PIL import Image

PLAN, DISTILL = ("plan",), ("distill",)
DATA = Path("data")
TABLE = DATA / "annotations.jsonl"
FIRST = "images/train0.png"


def _good(folder: Path) -> None:
    """Write spec, annotations, lists and images as they should be."""
    shutil.rmtree(folder / DATA) if (folder / DATA).is_dir() else None
    (folder / DATA).unlink(missing_ok=True)
    shutil.rmtree(folder / ".kdcompile")
    project(folder)


def _line(text: str):
    """The project with this line for the first one of its annotations."""

    def make(folder: Path) -> None:
        project(folder)
        _, *others = (folder / TABLE).read_text().splitlines()
        (folder / TABLE).write_text("\n".join([text, *others]))

    return make


def _points(text: str):
    return _line(f'{{"image": "{FIRST}", "points": {text}}}')


def _doubled(folder: Path) -> None:
    """A list of points that was joined to itself."""
    project(folder)
    first, *others = (folder / TABLE).read_text().splitlines()
    row = json.loads(first)
    row["points"] *= 2
    (folder / TABLE).write_text("\n".join([json.dumps(row), *others]))


def _appended(text: str, file: str = "annotations.jsonl"):
    def make(folder: Path) -> None:
        project(folder)
        with (folder / DATA / file).open("a") as stream:
            stream.write(text)

    return make


def _last_line_out(folder: Path) -> None:
    """Keep one of the two lines."""
    lines = (folder / TABLE).read_text().splitlines(keepends=True)
    (folder / TABLE).write_text("".join(lines[:-1]))


def _of_one_name(folder: Path) -> None:
    """Another image of the same name in another folder."""
    _appended('{"image": "more/train0.png", "points": []}\n')(folder)


def _by_path(folder: Path) -> None:
    """Name it by its path."""
    replace(folder / DATA / "train.txt", "train0.png", FIRST)


def _file(name: str, content: bytes):
    return lambda folder: (project(folder), (folder / DATA / name).write_bytes(content))


def _without(name: str):
    return lambda folder: (project(folder), (folder / DATA / name).unlink())


def _same_list(folder: Path) -> None:
    project(folder, spec=SPEC.replace('root = "data"', 'root = "data"\nval = "train.txt"'))


def _aliased(link):
    """A training image by another name, which the test split names."""

    def make(folder: Path) -> None:
        project(folder)
        images = folder / DATA / "images"
        (images / "test2.png").unlink()
        link(images / "train1.png", images / "test2.png")

    return make


def _copies(folder: Path) -> None:
    """Every training image is a copy of a test image."""
    project(folder)
    images = folder / DATA / "images"
    for path in images.glob("train*.png"):
        path.write_bytes((images / "test0.png").read_bytes())


def _alike(name: str):
    """Every training image is this one, or each is of a colour of its own."""

    def make(folder: Path) -> None:
        project(folder)
        images = folder / DATA / "images"
        content = (images / name).read_bytes() if name else None
        for path in images.glob("train*.png"):
            if content is not None:
                path.write_bytes(content)
            else:
                Image.new("RGB", (16, 16), (int(path.stem[-1]), 0, 0)).save(path)

    return make


def _calibrating(images: int):
    """Training images of which so many are chosen evenly: both alike, or the one black."""

    def make(folder: Path) -> None:
        project(folder, spec=SPEC.replace("images = 4", f"images = {images}"))
        first, third = (folder / DATA / "images" / f"train{index}.png" for index in (0, 2))
        if images == 1:
            Image.new("RGB", (16, 16)).save(first)
        else:
            shutil.copyfile(first, third)

    return make


def _no_root(folder: Path) -> None:
    project(folder, spec=SPEC.replace('root = "data"', 'root = "dta"'))


CASES = [
    BadInput(
        "points-line-no-json", _line("{"), PLAN, "annotations-syntax", _good,
        says=("line 1", "annotations.jsonl:1", '"points": [[x, y], ...]'),
    ),
    BadInput("points-line-a-list", _line("[1]"), PLAN, "annotations-syntax", _good),
    BadInput(
        "points-line-without-points", _line(f'{{"image": "{FIRST}"}}'), PLAN, "annotations-syntax",
        _good, says=("'points'",),
    ),
    BadInput(
        "points-line-nested-too-deep", _points("[" * 100_000), PLAN, "annotations-syntax", _good,
        says=("nested too deep",),
    ),
    BadInput("points-that-are-text", _points('"none"'), PLAN, "annotations-syntax", _good),
    BadInput(
        "points-of-three-numbers", _points("[[1, 2, 3]]"), PLAN, "annotation-invalid", _good,
        says=("points of train0.png", "[1, 3]"),
    ),
    BadInput(
        "points-that-are-boxes", _points("[[1, 2, 3, 4]]"), PLAN, "annotation-invalid", _good,
        says=("no list of [x, y] pairs",),
    ),
    BadInput("points-in-a-row", _points("[1, 2, 3, 4]"), PLAN, "annotation-invalid", _good),
    BadInput("points-ragged", _points("[[1, 2], [3]]"), PLAN, "annotation-invalid", _good),
    BadInput("points-with-words", _points('[[1, "two"]]'), PLAN, "annotation-invalid", _good),
    BadInput(
        "points-of-digits-in-quotes", _points('[["1", "2"]]'), PLAN, "annotation-invalid", _good,
        says=("no number, '1'",),
    ),
    BadInput(
        "points-of-truth-values", _points("[[3, 4], [true, false]]"), PLAN, "annotation-invalid",
        _good, says=("no number, True",),
    ),
    BadInput(
        "points-half-of-truth-values", _points("[[3, true]]"), PLAN, "annotation-invalid", _good,
        says=("no number, True",),
    ),
    BadInput(
        "points-not-a-number", _points("[[1, NaN]]"), PLAN, "annotation-invalid", _good,
        says=("not a finite number", "in pixels"),
    ),
    BadInput("points-infinite", _points("[[1, 1e999]]"), PLAN, "annotation-invalid", _good),
    BadInput(
        "points-negative", _points("[[4, 4], [-1.5, 3]]"), PLAN, "annotation-invalid", _good,
        says=("negative coordinate, [-1.5, 3]", "from the top left corner"),
    ),
    BadInput(
        "points-outside", _points("[[3, 3], [3, 400], [17, 0]]"), DISTILL, "annotation-outside",
        _good, says=("2 of the 3 points", "16 x 16 pixels, the first at [3, 400]"),
    ),
    BadInput("points-far-outside", _points("[[1e300, 1]]"), DISTILL, "annotation-outside", _good),
    BadInput(
        "points-twice", _doubled, PLAN, "annotation-duplicate", _good,
        says=("6 of the 12 points of train0.png", "joined to itself"),
    ),
    BadInput(
        "points-of-an-image-twice", _appended(f'{{"image": "{FIRST}", "points": []}}\n'), PLAN,
        "annotation-twice", _last_line_out, says=("lines 1 and 11 both annotate", "keep one"),
    ),
    BadInput(
        "points-of-two-images-of-one-name", _of_one_name, PLAN, "annotation-ambiguous", _by_path,
        says=("may be images/train0.png and more/train0.png",), then=None,
    ),
    BadInput(
        "annotations-not-there", _without("annotations.jsonl"), PLAN, "annotations-missing", _good,
        says=("data.annotations",),
    ),
    BadInput(
        "annotations-not-utf8", _file("annotations.jsonl", b"\xff\xfe\x00"), PLAN,
        "annotations-missing", _good,
    ),
    BadInput(
        "data-not-there", _no_root, PLAN, "data-missing",
        lambda folder: ("plan", "--set", "data.root=data"), says=("--set data.root=PATH",),
    ),
    BadInput(
        "split-not-there", _without("val.txt"), PLAN, "split-missing", _good, says=("val.txt",),
    ),
    BadInput("split-not-utf8", _file("val.txt", b"\xff\xfe\x00"), PLAN, "split-missing", _good),
    BadInput(
        "split-empty", _file("train.txt", b"\n\n"), PLAN, "split-empty", _good,
        says=("the train split", "list at least one image"),
    ),
    BadInput(
        "split-of-an-unknown-image", _appended("test9.png\n", "test.txt"), PLAN,
        "annotation-missing", _good, says=("'test9.png'", "(did you mean 'test"),
    ),
    BadInput(
        "split-of-a-missing-image", _without("images/test1.png"), PLAN, "image-missing", _good,
        says=("the test split names test1.png, which is not there",),
    ),
    BadInput(
        "image-in-two-splits-by-path", _same_list, PLAN, "split-overlap",
        lambda folder: ("plan", "--set", "data.val=val.txt"),
        says=("train0.png and 3 more: in the train split and in the val split",),
    ),
    BadInput(
        "image-in-two-splits-by-link",
        _aliased(lambda old, new: new.symlink_to(old)), PLAN, "split-overlap", _good,
        says=("test2.png: in the train split and in the test split", "in one split"),
    ),
    BadInput("image-in-two-splits-by-hard-link", _aliased(os.link), PLAN, "split-overlap", _good),
    BadInput(
        "images-in-two-splits-by-content", _copies, PLAN, "split-empty", _good,
        says=("no image of its own", "that no other split holds"),
    ),
    BadInput(
        "training-images-of-one-colour", _alike(""), DISTILL, "data-constant", _good,
        says=("each of the 4 training images is of one colour",),
    ),
    BadInput(
        "training-images-all-one", _alike("train0.png"), DISTILL, "data-duplicate", _good,
        says=("the 4 training images are one image",),
    ),
    BadInput(
        "calibration-images-of-one-colour", _calibrating(1), DISTILL, "calib-constant", _good,
        says=("each of the 1 calibration images",),
    ),
    BadInput(
        "calibration-images-all-one", _calibrating(2), DISTILL, "calib-duplicate", _good,
        says=("the 2 calibration images are one image", "raise quantize.images"),
    ),
]  # fmt: skip
