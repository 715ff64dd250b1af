"""Folders of classes, tables of values, and lists."""

import numpy as np
import pytest
from PIL import Image

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.data.splits import load_splits, splits_digest


def _image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    for place, split in enumerate(("train", "val", "test")):
        for number, name in enumerate(("dog", "cat", "ant")):
            _image(tmp_path / split / name / "a.png", 10 * (3 * place + number))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    _image(tmp_path / "train" / "cat" / "more" / "b.PNG", 200)
    return Data(format="imagefolder", root=tmp_path)


@pytest.fixture
def tables(tmp_path):
    for place, split in enumerate(("train", "val", "test")):
        for number in range(2):
            _image(tmp_path / split / f"{number}.png", 10 * (2 * place + number))
        (tmp_path / split / "labels.csv").write_text("Image,value\n0.png,1.5\n\n1.png, -2\n")
    return Data(format="imagefolder", root=tmp_path)


def test_classes_are_numbered_by_sorted_name(folders):
    splits = load_splits(folders, folders.root)
    assert splits.classes == ("ant", "cat", "dog")
    found = {photo.name: photo.label for photo in splits.train}
    assert found == {
        "train/ant/a.png": 0, "train/cat/a.png": 1, "train/cat/more/b.PNG": 1, "train/dog/a.png": 2,
    }  # fmt: skip
    assert splits.val[0].pixels(3).shape == (6, 8, 3)


def test_a_split_may_lack_a_class_and_keeps_the_numbers(folders):
    for split in ("val", "test"):
        (folders.root / split / "ant" / "a.png").unlink()
        (folders.root / split / "ant").rmdir()
    assert [photo.label for photo in load_splits(folders, folders.root).test] == [1, 2]


def test_twins_are_dropped_here_too(folders):
    _image(folders.root / "train" / "dog" / "twin.png", 60)  # the bytes of test/dog/a.png
    splits = load_splits(folders, folders.root)
    assert splits.dropped == [
        {"name": "train/dog/twin.png", "split": "train", "twin": "test/test/dog/a.png"}
    ]


def test_lists_name_the_class_by_its_folder(folders):
    (folders.root / "part.txt").write_text("train/cat/a.png\ntrain/ant/a.png\n")
    data = folders.model_copy(update={"train": "part.txt", "val": "val/cat", "test": "part.txt"})
    (folders.root / "tested.txt").write_text("test/ant/a.png")
    data = data.model_copy(update={"val": "tested.txt", "test": "tested.txt"})
    (folders.root / "valid.txt").write_text("val/cat/a.png")
    data = data.model_copy(update={"val": "valid.txt"})
    splits = load_splits(data, folders.root)
    assert splits.classes == ("ant", "cat")
    assert [photo.label for photo in splits.train] == [1, 0]


def test_tables_give_values(tables):
    splits = load_splits(tables, tables.root)
    assert splits.classes is None
    assert [(p.name, p.label) for p in splits.test] == [("test/0.png", 1.5), ("test/1.png", -2)]


def _digest(data):
    return splits_digest(data, data.root, Hasher(data.root / "hashes.json"))


def test_digest_follows_labels_and_content(tables, tmp_path):
    before = _digest(tables)
    (tables.root / "val" / "labels.csv").write_text("0.png,1.5\n1.png,-3\n")
    after = _digest(tables)
    assert {split for split in before if before[split] != after[split]} == {"val"}


def test_digest_of_a_class_folder_follows_a_move(folders):
    before = _digest(folders)
    (folders.root / "val" / "dog" / "a.png").rename(folders.root / "val" / "cat" / "z.png")
    after = _digest(folders)
    assert {split for split in before if before[split] != after[split]} == {"val"}


def _more_classes(root):
    _image(root / "val" / "cow" / "a.png", 250)


def _values_in_test(root):
    for path in sorted((root / "test").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    _image(root / "test" / "a.png", 99)
    (root / "test" / "labels.csv").write_text("a.png,3")


@pytest.mark.parametrize(
    ("spoil", "code", "text"),
    [
        (_more_classes, "classes-differ", "a class 'cow'"),
        (_values_in_test, "classes-differ", "has values, the training split has classes"),
        (lambda root: (root / "val" / "labels.csv").write_text(""), "split-ambiguous", "val"),
        (lambda root: (root / "val").rename(root / "lost"), "split-missing", "no folder 'val'"),
    ],
)
def test_folders_that_cannot_be_read(folders, spoil, code, text):
    spoil(folders.root)
    with pytest.raises(KDError, match=text) as caught:
        load_splits(folders, folders.root)
    assert caught.value.code == code
    assert caught.value.fix


@pytest.mark.parametrize("heading", ["name,value", "Image,value", "file name, weight (g)"])
def test_a_first_line_that_names_the_columns_is_a_heading(tables, heading):
    (tables.root / "train" / "labels.csv").write_text(f"{heading}\n0.png,1.5\n1.png,-2\n")
    assert [photo.label for photo in load_splits(tables, tables.root).train] == [1.5, -2.0]


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ("0.png", "labels-syntax"),
        ("0.png,1\nname,value", "labels-syntax"),  # a heading is the first line
        ("name,1", "image-missing"),
        ("name,", "labels-syntax"),
        ("name,value,weight\n0.png,1", "labels-syntax"),
        ("0.png,1,2", "labels-syntax"),
        ("0.png,much", "labels-syntax"),
        ("0.png,inf", "labels-syntax"),
        ("0.png,nan", "labels-syntax"),
        ("absent.png,1", "image-missing"),
        ("../../../etc/hostname,1", "path-outside"),
        ("", "split-empty"),
    ],
)
def test_tables_that_cannot_be_read(tables, table, code):
    (tables.root / "train" / "labels.csv").write_text(table)
    with pytest.raises(KDError) as caught:
        load_splits(tables, tables.root)
    assert caught.value.code == code
    assert caught.value.fix


def test_a_folder_without_classes_or_table(tables):
    (tables.root / "val" / "labels.csv").unlink()
    with pytest.raises(KDError) as caught:
        load_splits(tables, tables.root)
    assert caught.value.code == "classes-missing"


def test_linked_photos_are_read(tables, tmp_path_factory):
    kept = tmp_path_factory.mktemp("kept") / "a.png"
    (tables.root / "val" / "0.png").rename(kept)
    (tables.root / "val" / "0.png").symlink_to(kept)
    assert load_splits(tables, tables.root).val[0].pixels(3).shape == (6, 8, 3)
