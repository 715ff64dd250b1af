"""Formats, split lists, and twins across splits."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.data import photo as photo_module
from kdcompile.data.formats import points_jsonl
from kdcompile.data.photo import Photo
from kdcompile.data.splits import drop_twins, load_splits, photos_digest, splits_digest


def _image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10, 3), value, np.uint8)).save(path)


@pytest.fixture
def jsonl(tmp_path):
    names = ["a.png", "b.png", "c.png", "d.png", "e.png"]
    for value, name in enumerate(names):
        _image(tmp_path / "images" / name, 20 * value)
    _image(tmp_path / "images" / "twin.png", 80)  # the bytes of e.png
    rows = [
        {"image": f"images/{n}", "points": [[1.5, 2.5 + j] for j in range(i)]}
        for i, n in enumerate([*names, "twin.png"])
    ]
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train.txt").write_text("a.png\nimages/b.png\n\n")
    (tmp_path / "val.txt").write_text("c.png\ntwin.png\n")
    (tmp_path / "test.txt").write_text("d.png\ne.png\n")
    return Data(format="points-jsonl", root=tmp_path)


def test_points_jsonl_and_the_twin_of_a_test_image(jsonl):
    splits = load_splits(jsonl, jsonl.root)
    assert [p.name for p in splits.train] == ["a.png", "images/b.png"]
    assert [p.name for p in splits.val] == ["c.png"]
    assert [p.name for p in splits.test] == ["d.png", "e.png"]
    assert splits.dropped == [{"name": "twin.png", "split": "val", "twin": "test/e.png"}]
    assert splits.test[1].points.shape == (4, 2)
    assert splits.train[0].points.shape == (0, 2)
    assert splits.test[0].pixels(3).shape == (8, 10, 3)
    assert splits.test[0].pixels(1).shape == (8, 10, 1)


def test_annotations_are_checked_once_and_only_listed_lines_are_parsed_again(jsonl, monkeypatch):
    path = jsonl.root / "annotations.jsonl"
    more = [json.dumps({"image": f"images/no{n}.png", "points": [[1, 2]]}) for n in range(500)]
    path.write_text("\n".join([path.read_text(), *more]))
    calls = {"read_text": 0, "parse_json": 0}

    def counting(name, real):
        def call(*args, **options):
            calls[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(points_jsonl, name, call)

    for name in calls:
        counting(name, getattr(points_jsonl, name))
    for _ in range(3):
        load_splits(jsonl, jsonl.root)
    assert calls == {"read_text": 1, "parse_json": 3 * 6}  # six images are listed
    path.write_text("\n".join([path.read_text(), more[0]]))
    with pytest.raises(KDError, match="both annotate images/no0"):
        load_splits(jsonl, jsonl.root)
    assert calls["read_text"] == 2


def _digest(data):
    return splits_digest(data, data.root, Hasher(data.root / "hashes.json"))


def test_digest_follows_content_and_not_time(jsonl):
    before = _digest(jsonl)
    (jsonl.root / "images" / "a.png").touch()
    assert _digest(jsonl) == before
    _image(jsonl.root / "images" / "a.png", 99)
    after = _digest(jsonl)
    assert after["train"] != before["train"]
    assert after["test"] == before["test"]


def test_a_twin_that_appears_in_the_test_split_changes_what_it_leaves(jsonl):
    before = _digest(jsonl)
    _image(jsonl.root / "images" / "d.png", 0)  # now the bytes of a.png, a training photo
    after = _digest(jsonl)
    assert [p.name for p in load_splits(jsonl, jsonl.root).train] == ["images/b.png"]
    assert after["train"] != before["train"]
    assert after["val"] == before["val"]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda root: (root / "train.txt").unlink(), "split-missing"),
        (lambda root: (root / "train.txt").write_text(""), "split-empty"),
        (lambda root: (root / "train.txt").write_text("aa.png"), "annotation-missing"),
        (lambda root: (root / "images" / "a.png").unlink(), "image-missing"),
        (lambda root: (root / "annotations.jsonl").unlink(), "annotations-missing"),
        (lambda root: (root / "annotations.jsonl").write_text("{"), "annotations-syntax"),
        (
            lambda root: (root / "annotations.jsonl").write_text(
                (root / "annotations.jsonl").read_text().replace("1.5", "NaN")
            ),
            "annotation-invalid",
        ),
    ],
)
def test_bad_input_has_a_code_and_a_fix(jsonl, spoil, code):
    spoil(jsonl.root)
    with pytest.raises(KDError) as error:
        load_splits(jsonl, jsonl.root)
    assert error.value.code == code
    assert error.value.fix
    assert error.value.where


def test_an_unreadable_image(jsonl):
    (jsonl.root / "images" / "a.png").write_bytes(b"not an image")
    with pytest.raises(KDError) as error:
        load_splits(jsonl, jsonl.root).train[0].pixels(3)
    assert error.value.code == "image-unreadable"


@pytest.fixture
def published(tmp_path):
    """The folders of ShanghaiTech as published, with three photos a part."""
    for part, value in (("train_data", 0), ("test_data", 100)):
        for number in (1, 2, 10):
            _image(tmp_path / part / "images" / f"IMG_{number}.jpg", value + number)
            location = np.arange(2.0 * number).reshape(number, 2)
            cell = np.empty((1, 1), object)
            cell[0, 0] = np.array(
                [[(location, float(number))]], [("location", "O"), ("number", "O")]
            )
            truth = tmp_path / part / "ground-truth" / f"GT_IMG_{number}.mat"
            truth.parent.mkdir(exist_ok=True)
            savemat(truth, {"image_info": cell})
    (tmp_path / "val.txt").write_text("train_data/images/IMG_2.jpg\n")
    return Data(
        format="shanghaitech-mat",
        root=tmp_path,
        train="train_data",
        test="test_data",
        val="val.txt",
    )


def test_shanghaitech_mat(published):
    splits = load_splits(published, published.root)
    assert [p.count for p in splits.train] == [1, 10]
    assert [p.count for p in splits.val] == [2]
    assert [p.count for p in splits.test] == [1, 2, 10]
    assert splits.test[1].points.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert set(_digest(published)) == {"train", "val", "test"}


def test_a_broken_mat_file(published):
    next((published.root / "test_data").rglob("*.mat")).write_bytes(b"x" * 200)
    with pytest.raises(KDError) as error:
        load_splits(published, published.root)
    assert error.value.code == "annotation-mat"


def test_data_factory(tmp_path):
    code = (
        "import numpy as np\n"
        "from kdcompile.data.photo import Photo\n"
        "def photos(root, split):\n"
        "    value = len(split)\n"
        "    pixels = np.full((4, 4, 1), value, np.uint8)\n"
        "    return [Photo(split, np.zeros((0, 2), np.float32), array=pixels)]\n"
        "def wrong(root, split):\n"
        "    return [3]\n"
    )
    (tmp_path / "made.py").write_text(code)
    data = Data(format="made.py:photos", root=tmp_path, train="t", val="vv", test="sss")
    assert [p.name for p in load_splits(data, tmp_path).test] == ["sss"]
    before = _digest(data)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "report.md").write_text("written by a build")
    assert _digest(data) == before
    (tmp_path / "more.npz").write_text("data")
    assert _digest(data) != before
    named = data.model_copy(update={"files": ["*.png"]})
    before = _digest(named)
    (tmp_path / "more.npz").write_text("other data")
    assert _digest(named) == before
    (tmp_path / "made.py").write_text(code + "# changed\n")
    assert _digest(named) != before
    with pytest.raises(KDError) as error:
        load_splits(data.model_copy(update={"format": "made.py:wrong"}), tmp_path)
    assert error.value.code == "data-factory"


@pytest.mark.parametrize(("most", "calls"), [(3 * 48, 3), (3 * 48 - 1, 6)])
def test_small_photos_of_a_factory_are_made_once_until_what_it_reads_changes(
    most, calls, tmp_path, monkeypatch
):
    (tmp_path / "made.py").write_text(
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from kdcompile.data.photo import Photo\n"
        "def photos(root, split):\n"
        "    with Path(__file__).with_name('calls').open('a') as calls:\n"
        "        calls.write('.')\n"
        "    half = np.full((2, 4, 3), len(split), np.uint8)\n"
        "    shown = {'array': half} if split == 't' else {'encoded': half.tobytes()}\n"
        "    mask = np.full((4, 6), int((root / 'data').read_text()), np.uint8)\n"
        "    return [Photo(split, **shown, mask=mask, label=len(split))]\n"
    )
    monkeypatch.setattr("kdcompile.data.splits.MOST_KEPT", most)
    (tmp_path / "data").write_text("1")
    named = {"train": "t", "val": "vv", "test": "sss", "files": ["data"]}
    data = Data(format="made.py:photos", root=tmp_path, **named)
    first, second = load_splits(data, tmp_path), load_splits(data, tmp_path)
    assert (tmp_path / "calls").stat().st_size == calls
    assert first.train[0] is not second.train[0], "each pass has its own"
    (tmp_path / "data").write_text("2")
    assert load_splits(data, tmp_path).test[0].mask[0, 0] == 2
    other = data.model_copy(update={"train": "tttt"})
    assert load_splits(other, tmp_path).train[0].label == 4


def test_shanghaitech_a_has_one_twin(shanghaitech):
    splits = load_splits(
        Data(format="points-jsonl", root=shanghaitech, train="train_minus_val.txt"), shanghaitech
    )
    assert (len(splits.train), len(splits.val), len(splits.test)) == (241, 58, 182)
    assert splits.dropped == [
        {"name": "train_IMG_121.jpg", "split": "val", "twin": "test/test_IMG_98.jpg"}
    ]


def test_the_digest_of_photos_is_of_pixels_and_annotations_alone():
    def photo(name, grey, x=1.0, label=None):
        array = np.full((4, 4, 1), grey, np.uint8)
        return Photo(name, np.float32([[x, 2]]), array=array, label=label)

    known = photos_digest([photo("a", 1), photo("b", 2)])
    assert photos_digest([photo("c", 2), photo("d", 1)]) == known
    others = [
        [photo("a", 1)],
        [photo("a", 1), photo("b", 3)],
        [photo("a", 1), photo("b", 2, x=1.5)],
        [photo("a", 1), photo("b", 2, label=1.0)],
    ]
    assert len({known, *map(photos_digest, others)}) == 5


def test_photos_are_read_once_for_their_hashes(monkeypatch, tmp_path):
    read = []
    monkeypatch.setattr(photo_module, "file_sha256", lambda path: read.append(path) or path.name)
    photos = {
        split: [Photo(split, path=tmp_path / split, label=1.0)]
        for split in ("train", "val", "test")
    }
    splits = drop_twins(photos)
    photos_digest(splits.test)
    assert sorted(path.name for path in read) == ["test", "train", "val"]
