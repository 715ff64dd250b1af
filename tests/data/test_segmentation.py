"""The task of masks: what is judged, its metrics, its targets, its losses, its format."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_masks import CLASSES, VOID, save, scene, write_data
from torch import Tensor
from torch.nn import functional

from kdcompile.config.distill import Distill
from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.data.augment import CropSampler
from kdcompile.data.masks import IGNORED
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.recognise import recognise
from kdcompile.data.splits import load_splits
from kdcompile.data.targets import MaskTargets
from kdcompile.distill.objective import MaskObjective
from kdcompile.tasks.segmentation import MIOU, PIXELS, class_map
from kdcompile.tasks.task import find_task

TASK = find_task("segmentation")
PLANE = Preprocess(3, (0.0,) * 3, (1.0,) * 3, (8, 12), (8, 12), "mirror")


def _logits(mask: np.ndarray, classes: int = 3) -> np.ndarray:
    """Sure logits [1, K, h, w] of a class map."""
    return (8.0 * (np.arange(classes)[:, None, None] == mask)).astype(np.float32)[None]


def _photo(mask: np.ndarray) -> Photo:
    return Photo("a", array=np.zeros((*mask.shape, 3), np.uint8), mask=mask.astype(np.uint8))


def _errors(pairs):
    """Errors of (class map that a network gave, mask), at the size of the plane."""
    rows = []
    for given, mask in pairs:
        photo = _photo(mask)
        frame = PLANE.view(photo)[1]
        rows.append(TASK.predictions(TASK.within(_logits(given), frame))[0])
    return TASK.errors(rows, [0.0] * len(rows))


def test_metrics_are_those_of_the_confusion_of_the_set() -> None:
    random = np.random.default_rng(0)
    given, masks = random.integers(0, 3, (2, 5, 8, 12))
    masks[:, :2] = IGNORED
    errors = _errors(zip(given, masks, strict=True))
    judged = masks != IGNORED
    ious = [
        ((given == k) & (masks == k)).sum() / (((given == k) | (masks == k)) & judged).sum()
        for k in range(3)
    ]
    assert MIOU(errors) == pytest.approx(np.mean(ious))
    assert PIXELS(errors) == pytest.approx((given == masks)[judged].mean())
    parts = TASK.parts_of(np.zeros(5), errors, CLASSES)
    assert [about["class"] for about, _ in parts] == CLASSES
    found = [TASK.metric_of(MIOU, about)(errors[where]) for about, where in parts]
    assert found == pytest.approx(ious)


def test_an_image_s_own_error_and_a_class_that_no_mask_has() -> None:
    mask = np.zeros((8, 12), int)
    mask[:4] = 1
    given = mask.copy()
    given[0, :6] = 2  # no mask has it: it counts as missing of class 1 alone
    errors = _errors([(given, mask), (mask, mask)])
    assert errors.tolist() == pytest.approx([1 - (42 / 48 + 1) / 2, 0.0])
    assert MIOU(errors) == pytest.approx((1 - 6 / 96 + 1) / 2)
    assert len(TASK.parts_of(np.zeros(2), errors, None)) == 2
    assert _errors([(given, mask * 0 + IGNORED)]).tolist() == [0.0]


def test_an_output_that_is_no_number_has_no_score() -> None:
    frame = PLANE.view(_photo(np.zeros((8, 12))))[1]
    row = TASK.within(np.full((1, 3, 4, 6), np.nan, np.float32), frame)
    assert np.isnan(row).all()
    assert np.isnan(MIOU(TASK.errors(row, [0.0])))


def test_padding_is_not_judged_and_the_map_is_scaled_to_the_photo() -> None:
    mask = np.zeros((6, 10), int)
    mask[:, 5:] = 1
    photo = _photo(mask)
    frame = PLANE.view(photo)[1]
    logits = _logits(np.pad(mask, ((0, 2), (0, 2)), constant_values=2))  # of the padding: another
    row = TASK.within(logits, frame)
    assert row[0, 0] == 0
    assert (class_map(logits, frame) == mask).all()
    small = torch.randn(1, 3, 4, 6)
    whole = Preprocess(3, (0.0,) * 3, (1.0,) * 3, (8, 12), (8, 12)).frame(8, 12)
    wanted = functional.interpolate(small, (8, 12), mode="bilinear", align_corners=False)
    assert (class_map(small.numpy(), whole) == wanted[0].argmax(0).numpy()).mean() == 1


def test_the_best_constant_names_the_most_frequent_class() -> None:
    mask = np.zeros((8, 12), int)
    mask[:2] = 2
    errors = _errors([(mask, mask)])
    rows = np.concatenate([errors[:, None], errors.rows], axis=1)
    found = TASK.constant_scores([0.0], rows, [0.0])
    assert found["miou"] == pytest.approx(0.75 / 2)
    assert found["pixel_accuracy"] == pytest.approx(0.75)


def _sampler(photos: list[Photo], **options) -> CropSampler:
    options = Distill.model_validate({"crop": 16, "batch": 4, "colour": 0, **options})
    targets = MaskTargets(photos, torch.device("cpu"))
    prepare = Preprocess(3, (0.0,) * 3, (1.0,) * 3, (8, 8), (64, 64))
    return CropSampler(photos, prepare, options, targets, 0, torch.device("cpu"))


def test_crops_and_flips_move_the_masks() -> None:
    random = np.random.default_rng(1)
    photos = []
    for n, size in enumerate([(24, 32), (12, 40), (20, 10), (16, 16)]):
        mask = random.integers(0, 200, size).astype(np.uint8)
        pixels = np.repeat(mask[:, :, None], 3, 2)  # the photo shows its own mask
        photos.append(Photo(str(n), array=pixels, mask=mask))
    sampler = _sampler(photos, scale=[1.0, 1.0], flip=True)
    for step in range(6):
        batch = sampler.batch(step)
        shown = torch.round(batch.images[:, 0] * 255).byte()
        seen = batch.target != IGNORED
        assert batch.target.dtype == torch.uint8
        assert batch.target.shape == (4, 16, 16)
        assert (shown[seen] == batch.target[seen]).all()
        assert seen.float().mean() > 0.5
        if step == 0:
            assert not seen.all()  # of the photos that are smaller than a crop
    zoomed = _sampler(photos[:1] * 4, scale=[2.0, 2.0]).batch(0)
    assert (zoomed.target[:, ::2, ::2] == zoomed.target[:, 1::2, 1::2]).all()


def _terms(student: Tensor, target: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
    return MaskObjective(Distill(temperature=2.0), target).terms(student, target, teacher)


def test_losses_leave_out_what_is_ignored() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    target = torch.randint(0, 3, (2, 8, 8)).byte()
    target[:, :4] = IGNORED
    terms = _terms(student.requires_grad_(), target, teacher)
    wide = functional.interpolate(student, (8, 8), mode="bilinear", align_corners=False)
    kept = target != IGNORED
    rows = wide.permute(0, 2, 3, 1)[kept]
    assert terms["hard"].item() == pytest.approx(
        functional.cross_entropy(rows, target[kept].long()).item()
    )
    p, q = ((x[:, :, 2:] / 2).log_softmax(1) for x in (student, teacher))
    kl = 4 * (q.exp() * (q - p)).sum(1).mean()
    assert terms["soft"].item() == pytest.approx(kl.item(), rel=1e-5)
    nothing = _terms(student, torch.full_like(target, IGNORED), teacher)
    assert (nothing["hard"].item(), nothing["soft"].item()) == (0.0, 0.0)
    assert set(_terms(student, target, None)) == {"hard"}


def _load(root: Path, **fields):
    data = Data.model_validate(
        {"format": "masks", "root": root, "ignore_index": VOID, "classes": CLASSES, **fields}
    )
    return load_splits(data, root)


def test_the_format_reads_lists_and_folders(tmp_path: Path) -> None:
    write_data(tmp_path / "lists", (3, 1, 1))
    splits = _load(tmp_path / "lists")
    assert [photo.name for photo in splits.train] == [f"images/train0{n}.png" for n in range(3)]
    assert splits.classes == tuple(CLASSES)
    assert splits.train[0].ignored == VOID
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        save(tmp_path / "outer" / split, "a", *scene(random))
        save(tmp_path / "inner" / split, "a", *scene(random))
        for part in ("images", "labels"):
            place = tmp_path / "swapped" / part / split
            place.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "inner" / split / part).rename(place)
    names = {split: split for split in ("train", "val", "test")}
    assert _load(tmp_path / "outer", **names).val[0].name == "val/images/a.png"
    assert _load(tmp_path / "swapped", **names).val[0].name == "images/val/a.png"
    for folder, train in (("lists", "train.txt"), ("outer", "train"), ("swapped", "train")):
        found = recognise(tmp_path / folder)
        assert (found.kind, found.fields["format"]) == ("segmentation", "masks")
        assert found.fields["train"] == train


def test_an_image_without_a_mask_is_told_with_its_place(tmp_path: Path) -> None:
    write_data(tmp_path, (2, 1, 1))
    (tmp_path / "labels" / "train01.png").unlink()
    with pytest.raises(KDError, match="has no mask train01") as info:
        _load(tmp_path)
    assert "labels/" in info.value.fix
    (tmp_path / "images" / "val00.png").unlink()
    (tmp_path / "train.txt").write_text("train00\n")
    with pytest.raises(KDError, match="image-missing"):
        _load(tmp_path)
