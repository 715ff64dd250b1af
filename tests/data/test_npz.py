"""Archives: arrays or encoded images, parts, seeds and pieces."""

import io

import numpy as np
import pytest
from PIL import Image

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.data.formats.npz import Selection, photos
from kdcompile.data.splits import load_splits, splits_digest

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 8, 8, 3), np.uint8)
LABELS = np.repeat([0, 1, 2], [30, 20, 10])


def _write(root, **arrays):
    np.savez(root / "d.npz", **arrays)
    return Data(
        format="npz", root=root, train="d.npz:a@0[:40]", val="d.npz:a@0[40:]", test="d.npz:b"
    )


@pytest.fixture
def data(tmp_path):
    other = RNG.integers(0, 256, (6, 8, 8, 3), np.uint8)
    return _write(
        tmp_path, x_a=IMAGES, y_a=LABELS, x_b=other, y_b=np.arange(6) % 3,
        classes=np.array(["ant", "bee", "cat"]),
    )  # fmt: skip


def test_splits_of_a_part_share_nothing_and_are_balanced(data):
    splits = load_splits(data, data.root)
    assert splits.classes == ("ant", "bee", "cat")
    names = {split: {p.name for p in getattr(splits, split)} for split in ("train", "val")}
    assert not names["train"] & names["val"]
    assert len(names["train"] | names["val"]) == 60
    counts = np.bincount([int(p.label) for p in splits.train])
    assert np.abs(counts - np.array([20, 40 / 3, 20 / 3])).max() < 1
    for photo in splits.train:
        index = int(photo.name.partition("-")[2])
        assert (photo.pixels(3) == IMAGES[index]).all()
        assert photo.label == LABELS[index]


def test_any_piece_is_balanced_and_another_seed_is_another_order(data):
    for piece in ("[:6]", "[6:12]", "[54:]"):
        found, _ = photos(data.root, f"d.npz:a@3{piece}")
        counts = np.bincount([int(p.label) for p in found], minlength=3)
        assert np.abs(counts - [3, 2, 1]).max() <= 1
    orders = [[p.name for p in photos(data.root, f"d.npz:a@{seed}")[0]] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert [p.name for p in photos(data.root, "d.npz:a[2:4]")[0]] == ["a-00002", "a-00003"]


def test_encoded_images_decode_as_from_a_file(tmp_path):
    streams = []
    for image in IMAGES[:3]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG")
        streams.append(buffer.getvalue())
    stream = np.frombuffer(b"".join(streams), np.uint8)
    offsets = np.cumsum([0, *map(len, streams)])
    np.savez(tmp_path / "e.npz", jpeg=stream, offsets=offsets, y=np.float32([0.5, 1.5, 2.5]))
    found, classes = photos(tmp_path, "e.npz")
    assert classes is None
    assert [p.label for p in found] == [0.5, 1.5, 2.5]
    for photo, encoded in zip(found, streams, strict=True):
        assert photo.encoded == encoded
        assert (photo.pixels(3) == np.asarray(Image.open(io.BytesIO(encoded)))).all()
        assert photo.pixels(1).shape == (8, 8, 1)
    assert len({p.sha256() for p in found}) == 3


def test_grey_images_have_one_channel(tmp_path):
    np.savez(tmp_path / "g.npz", x=IMAGES[..., 0], y=LABELS[:, None])
    found, _ = photos(tmp_path, "g.npz")
    assert found[0].pixels(1).shape == (8, 8, 1)
    with pytest.raises(KDError) as caught:
        found[0].pixels(3)
    assert caught.value.code == "image-channels"


def test_twins_across_splits_leave_training(tmp_path):
    other = IMAGES[[4, 5]].copy()
    data = _write(tmp_path, x_a=IMAGES, y_a=LABELS, x_b=other, y_b=np.array([0, 1]))
    splits = load_splits(data, tmp_path)
    assert {d["twin"] for d in splits.dropped} == {"test/b-00000", "test/b-00001"}
    assert len(splits.train) + len(splits.val) == 58


def test_digest_follows_the_archive_and_the_pieces(data):
    def digest(**changes):
        changed = data.model_copy(update=changes)
        return splits_digest(changed, data.root, Hasher(data.root / "hashes.json"))

    before = digest()
    assert digest() == before
    after = digest(train="d.npz:a@0[:39]")
    assert {s for s in before if before[s] != after[s]} == {"train"}
    np.savez(data.root / "d.npz", x_a=IMAGES, y_a=LABELS, x_b=IMAGES[:1], y_b=LABELS[:1])
    assert digest()["test"] != before["test"]


@pytest.mark.parametrize(
    "text",
    ["", "d", "train.txt", "d.npz:", "d.npz@", "d.npz[3]", "d.npz[a:b]", "d.npz[1:2:3]",
     "d.npz:a:b", "d.npz[-1:]"],
)  # fmt: skip
def test_selections_that_are_none(text):
    with pytest.raises(KDError) as caught:
        Selection.parse(text)
    assert caught.value.code == "npz-selection"
    assert "@0[:8000]" in caught.value.fix


GOOD = {"x": IMAGES, "y": LABELS}


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"x": IMAGES}, "archive-array"),
        ({"y": LABELS}, "archive-array"),
        ({**GOOD, "x": IMAGES.astype(np.float32)}, "archive-invalid"),
        ({**GOOD, "x": IMAGES[:3]}, "archive-invalid"),
        ({**GOOD, "x": IMAGES.reshape(60, -1)}, "archive-invalid"),
        ({**GOOD, "y": np.full(60, np.nan)}, "archive-invalid"),
        ({**GOOD, "y": LABELS.astype(str)}, "archive-invalid"),
        ({**GOOD, "y": LABELS.astype(object)}, "archive-unreadable"),
        ({"y": LABELS, "jpeg": np.zeros(70, np.uint8)}, "archive-array"),
        (
            {"y": LABELS, "jpeg": np.zeros(70, np.uint8), "offsets": np.arange(60)},
            "archive-invalid",
        ),
        (
            {"y": LABELS, "jpeg": np.zeros(60, np.uint8), "offsets": np.arange(61) + 1},
            "archive-invalid",
        ),
        ({"y": LABELS, "jpeg": np.zeros(60, np.int8), "offsets": np.arange(61)}, "archive-invalid"),
    ],
)
def test_archives_that_cannot_be_used(tmp_path, arrays, code):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(KDError) as caught:
        photos(tmp_path, "d.npz")
    assert caught.value.code == code
    assert caught.value.fix


def test_files_that_are_no_archives(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 torn")
    with (tmp_path / "one.npz").open("wb") as stream:
        np.save(stream, IMAGES)  # one array, not an archive of them
    for name, code in (
        ("d.npz", "archive-unreadable"), ("one.npz", "archive-unreadable"),
        ("e.npz", "archive-missing"), ("../d.npz", "path-outside"),
    ):  # fmt: skip
        with pytest.raises(KDError) as caught:
            photos(tmp_path, name)
        assert caught.value.code == code


def test_what_no_memory_holds_is_refused_before_it_is_unpacked(data, monkeypatch):
    monkeypatch.setattr("kdcompile.data.formats.npz.memory_bytes", lambda: 1000)
    monkeypatch.setattr(np, "load", None)  # never asked
    with pytest.raises(KDError, match="GB") as caught:
        photos(data.root, "d.npz:a")
    assert caught.value.code == "archive-huge"


def test_a_part_that_is_absent_names_the_nearest(data):
    with pytest.raises(KDError, match="did you mean 'y_a'"):
        photos(data.root, "d.npz:aa")
