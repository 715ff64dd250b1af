"""The pool of unlabelled photos: every format, without what the splits hold."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.data.pool import load_pool, pool_rows
from kdcompile.data.splits import load_splits, splits_digest, splits_rows

SPLITS = ("train", "val", "test")


def _image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 10, 3), value, np.uint8)
    pixels[0, 0] = 255 - value
    Image.fromarray(pixels).save(path)


@pytest.fixture
def jsonl(tmp_path):
    """Photo 0 trains, 1 validates, 2 tests; 3 and 4 are without annotations."""
    for value in range(5):
        _image(tmp_path / "images" / f"{value}.png", 20 * value)
    rows = [{"image": f"images/{n}.png", "points": [[1.5, 2.5]]} for n in range(3)]
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for value, split in enumerate(SPLITS):
        (tmp_path / f"{split}.txt").write_text(f"images/{value}.png\n")
    return Data(format="points-jsonl", root=tmp_path, unlabelled="images")


def _pool(data, **changes):
    data = data.model_copy(update=changes)
    return load_pool(data, data.root, load_splits(data, data.root))


def _names(pool):
    return [photo.name for photo in pool.photos]


def test_of_a_folder_what_no_split_holds(jsonl):
    shutil.copy(jsonl.root / "images" / "2.png", jsonl.root / "images" / "copy of 2.png")
    pool = _pool(jsonl)
    assert _names(pool) == ["images/3.png", "images/4.png"]
    assert {row["name"]: row["twin"] for row in pool.left_out} == {
        "images/0.png": "train/images/0.png",
        "images/1.png": "val/images/1.png",
        "images/2.png": "test/images/2.png",
        "images/copy of 2.png": "test/images/2.png",
    }
    assert all(photo.label is None and photo.count == 0 for photo in pool.photos)


def test_a_list_names_photos_by_their_paths(jsonl):
    (jsonl.root / "pool.txt").write_text("images/4.png\n\nimages/3.png\nimages/4.png\n")
    assert _names(_pool(jsonl, unlabelled="pool.txt")) == ["images/4.png", "images/3.png"]


def test_an_annotation_in_the_pool_is_ignored(jsonl):
    with (jsonl.root / "annotations.jsonl").open("a") as stream:
        stream.write('\n{"image": "images/3.png", "points": [[1, 2], [3, 4]]}')
    assert [photo.count for photo in _pool(jsonl).photos] == [0, 0]


@pytest.mark.parametrize("link", [False, True])
def test_a_list_with_a_photo_of_a_split_is_refused(jsonl, link):
    name = "images/0.png"
    if link:
        name = "images/other.png"
        os.link(jsonl.root / "images" / "0.png", jsonl.root / name)
    (jsonl.root / "pool.txt").write_text(f"images/3.png\n{name}\n")
    with pytest.raises(KDError, match="train split") as error:
        _pool(jsonl, unlabelled="pool.txt")
    assert error.value.code == "pool-labelled"
    assert name in error.value.message
    (jsonl.root / "pool.txt").write_text("images/3.png\n")  # the fix
    assert _names(_pool(jsonl, unlabelled="pool.txt")) == ["images/3.png"]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (None, "pool-unset"),
        ("nowhere", "pool-missing"),
        ("empty", "pool-empty"),
        ("known", "pool-empty"),
        ("empty.txt", "pool-empty"),
        ("absent.txt", "image-missing"),
        ("out.txt", "path-outside"),
        ("../elsewhere", "path-outside"),
    ],
)
def test_what_is_no_pool(jsonl, given, code):
    (jsonl.root / "empty").mkdir()
    (jsonl.root / "known").mkdir()
    shutil.copy(jsonl.root / "images" / "0.png", jsonl.root / "known" / "again.png")
    (jsonl.root / "empty.txt").write_text("\n")
    (jsonl.root / "absent.txt").write_text("images/9.png")
    (jsonl.root / "out.txt").write_text("../../etc/a.png")
    with pytest.raises(KDError) as error:
        _pool(jsonl, unlabelled=given)
    assert error.value.code == code


def test_a_folder_of_classes(tmp_path):
    for value, name in enumerate(["train/a/0", "train/b/1", "val/a/2", "test/b/3"]):
        _image(tmp_path / f"{name}.png", 20 * value)
    for value in (4, 5):
        _image(tmp_path / "pool" / "site" / f"{value}.png", 20 * value)
    data = Data(format="imagefolder", root=tmp_path, unlabelled="pool")
    pool = _pool(data)
    assert _names(pool) == ["pool/site/4.png", "pool/site/5.png"]
    assert all(photo.label is None for photo in pool.photos)


def test_published_folders(tmp_path):
    cell = np.empty((1, 1), object)
    cell[0, 0] = np.array([[(np.ones((2, 2)), 2.0)]], [("location", "O"), ("number", "O")])
    for value, part in enumerate(["train_data", "val_data", "test_data", "more_data"]):
        _image(tmp_path / part / "images" / f"IMG_{value}.jpg", 20 * value)
        (tmp_path / part / "ground-truth").mkdir()
        if part != "more_data":
            truth = tmp_path / part / "ground-truth" / f"GT_IMG_{value}.mat"
            savemat(truth, {"image_info": cell})
    names = {split: f"{split}_data" for split in SPLITS}
    data = Data(format="shanghaitech-mat", root=tmp_path, unlabelled="more_data", **names)
    assert _names(_pool(data)) == ["more_data/images/IMG_3.jpg"]


IMAGES = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), np.uint8)
PARTS = {"train": "d.npz@0[:5]", "val": "d.npz@0[5:7]", "test": "d.npz@0[7:9]"}


def test_the_rest_of_an_archive(tmp_path):
    """The pieces of one shuffle share no photo, whether labels are wanted or not."""
    np.savez(tmp_path / "d.npz", x=IMAGES, y=np.arange(20) % 4)
    data = Data(format="npz", root=tmp_path, unlabelled="d.npz@0[9:]", **PARTS)
    pool, splits = _pool(data), load_splits(data, tmp_path)
    known = [photo.name for split in SPLITS for photo in getattr(splits, split)]
    assert sorted([*known, *_names(pool)]) == [f"all-{n:05d}" for n in range(20)]
    assert all(photo.label is None for photo in pool.photos)
    with pytest.raises(KDError, match="test split") as error:
        _pool(data, unlabelled="d.npz@0[8:]")
    assert error.value.code == "pool-labelled"


@pytest.mark.parametrize("select", ["p.npz", "p.npz@3"])
def test_an_archive_without_labels(tmp_path, select):
    np.savez(tmp_path / "d.npz", x=IMAGES[:9], y=np.arange(9) % 2)
    np.savez(tmp_path / "p.npz", x=IMAGES[8:])  # the first of them is in a split
    data = Data(format="npz", root=tmp_path, unlabelled=select, **PARTS)
    pool = _pool(data)
    assert sorted(_names(pool)) == [f"all-{n:05d}" for n in range(1, 12)]
    assert [row["name"] for row in pool.left_out] == ["all-00000"]
    assert (_names(pool) == sorted(_names(pool))) == (select == "p.npz")


FACTORY = """
import numpy as np
from kdcompile.data.photo import Photo

def photos(root, split):
    first = {"train": 0, "val": 3, "test": 6, "more": 8}[split]
    make = lambda n: np.full((8, 8, 3), 20 * n, np.uint8)
    return [Photo(str(n), array=make(n), label=1.0) for n in range(first, first + 3)]
"""


def test_a_factory(tmp_path):
    (tmp_path / "data.py").write_text(FACTORY)
    names = {split: split for split in SPLITS}
    data = Data(format="data.py:photos", root=tmp_path, unlabelled="more", **names)
    pool = _pool(data)
    assert _names(pool) == ["9", "10"]
    assert pool.left_out == [{"name": "8", "twin": "test/8"}]
    assert all(photo.label is None for photo in pool.photos)


def test_a_spec_that_names_no_pool(jsonl):
    with pytest.raises(KDError) as error:
        _pool(jsonl.model_copy(update={"unlabelled": None}))
    assert error.value.code == "pool-unset"


def test_the_splits_know_nothing_of_a_pool(jsonl):
    def digests(unlabelled):
        data = jsonl.model_copy(update={"unlabelled": unlabelled})
        return splits_digest(data, data.root, Hasher(data.root / "hashes.json"))

    assert digests("images") == digests(None) == digests("nowhere")


def test_globs_and_several_places(jsonl):
    _image(jsonl.root / "more" / "5.png", 111)
    (jsonl.root / "pool.txt").write_text("images/4.png\n")
    assert _names(_pool(jsonl, unlabelled="images/[13].png")) == ["images/3.png"]
    several = ["more", "pool.txt", "images/?.png"]
    names = ["images/3.png", "images/4.png", "more/5.png"]
    assert sorted(_names(_pool(jsonl, unlabelled=several))) == names


def test_a_key_covers_what_the_splits_do_not_hold(jsonl):
    def rows():
        hasher = Hasher(jsonl.root / "hashes.json")
        held = splits_rows(jsonl, jsonl.root, hasher)
        return [name for name, _, _ in pool_rows(jsonl, jsonl.root, hasher, held)]

    assert rows() == ["images/3.png", "images/4.png"]
    shutil.copy(jsonl.root / "images" / "2.png", jsonl.root / "images" / "copy.png")
    assert "images/copy.png" not in rows()
    _image(jsonl.root / "images" / "6.png", 123)
    assert "images/6.png" in rows()


def test_images_of_one_name_from_two_selections_both_count(jsonl):
    (jsonl.root / "made.py").write_text(
        "import numpy as np\nfrom kdcompile.data.photo import Photo\n\n"
        "def photos(root, split):\n"
        "    shade = {'train.txt': 1, 'val.txt': 2, 'test.txt': 3}.get(split) or int(split)\n"
        "    return [Photo('a', array=np.full((8, 8, 3), shade, np.uint8))]\n"
    )
    pool = _pool(jsonl, format="made.py:photos", unlabelled=["7", "8", "3"])
    assert [int(photo.array[0, 0, 0]) for photo in pool.photos] == [7, 8]
    assert [row["twin"] for row in pool.left_out] == ["test/a"]
