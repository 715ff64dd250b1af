"""Training targets and losses of centre maps."""

import numpy as np
import pytest
import torch

from kdcompile.config.detection import Head
from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError
from kdcompile.data.augment import CropSampler
from kdcompile.data.box_targets import ASIDE, OBJECT, BoxTargets
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.distill.box_objective import BoxObjective
from kdcompile.distill.centre_loss import corners, heat_maps, imitation, unlikeness
from kdcompile.tasks.detection.decoders import DECODERS, Setting

CPU = torch.device("cpu")
PREPROCESS = Preprocess(1, (0.0,), (1.0,), (32, 32), (32, 32))


def painted(seed: int) -> Photo:
    """A photo of bright rectangles, one above the other, on black; 3 of them."""
    random = np.random.default_rng(seed)
    pixels, rows = np.zeros((60, 80, 1), np.uint8), []
    for place in range(3):
        x, y = random.integers(0, 60), 20 * place + random.integers(0, 6)
        width, height = random.integers(6, 20), random.integers(6, 14)
        pixels[y : y + height, x : x + width] = 80 * (place + 1)
        rows.append([x, y, x + width, y + height, place])
    return Photo(f"{seed}", array=pixels, boxes=np.array(rows, np.float32))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 2.0)])
def test_boxes_of_a_crop_lie_on_what_it_shows(scale):
    """Every pixel of a rectangle's grey is in its box, flipped crops and zoomed ones too."""
    photos = [painted(seed) for seed in range(8)]
    options = Distill(crop=32, batch=8, scale=scale, colour=0.0, flip=True)
    sampler = CropSampler(photos, PREPROCESS, options, BoxTargets(photos, CPU), 3, CPU)
    seen = 0
    for step in range(4):
        batch = sampler.batch(step)
        for image, boxes in zip(batch.images[:, 0], batch.target, strict=True):
            for x0, y0, x1, y1, kind, state in boxes.tolist():
                shown = (image - 80 * (kind + 1) / 255).abs() < 0.02
                if state == 0:
                    continue
                assert 0 <= x0 < x1 <= 32
                assert 0 <= y0 < y1 <= 32
                ys, xs = torch.nonzero(shown, as_tuple=True)
                if state == OBJECT and scale == (1.0, 1.0):
                    ends = [float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]
                    assert ends == [x0, y0, x1, y1]
                    seen += 1
    assert seen > 20 or scale != (1.0, 1.0)


def crop_of(boxes, left=0, top=0, window=32):
    """The targets of one crop of a photo of 64 x 64, at a corner."""
    photo = Photo("a", array=np.zeros((64, 64, 1), np.uint8), boxes=np.array(boxes, np.float32))
    options = Distill(crop=32, batch=1, scale=(1.0, 1.0), colour=0.0, flip=False)
    targets = BoxTargets([photo], CPU)
    sampler = CropSampler([photo], PREPROCESS, options, targets, 0, CPU)
    table = sampler.draw(0)
    from kdcompile.data.targets import Extra

    table[0, Extra.TOP], table[0, Extra.LEFT] = top, left
    return targets(table, 32)[0]


def test_a_sliver_is_set_aside_and_what_is_outside_is_no_box():
    found = crop_of([[22, 0, 55, 10, 1], [23, 0, 54, 10, 1], [40, 0, 50, 10, 1]])
    assert found[0].tolist() == [22, 0, 32, 10, 1, OBJECT]  # 10 / 33 of it
    assert found[1, 5] == ASIDE  # 9 / 31
    assert found[2, 5] == 0
    crowd = crop_of([[0, 0, 10, 10, -2]])
    assert crowd[0].tolist() == [0, 0, 10, 10, 1, ASIDE]


def test_the_maps_of_boxes_are_decoded_to_the_boxes():
    boxes = torch.tensor([[[4, 4, 28, 20, 0, 1], [40, 8, 60, 60, 1, 1], [1, 50, 9, 58, 1, 1]]])
    heat, sides, weight, _ = heat_maps(boxes.float(), 2, (16, 16), (4.0, 4.0))
    assert heat.amax((2, 3)).tolist() == [[1, 1]]
    assert int((heat == 1).sum()) == 3
    centre = torch.stack([(torch.arange(16) + 0.5) * 4] * 2)
    gaps = [centre[1][None, :] - sides[0, 0], centre[0][:, None] - sides[0, 1],
            sides[0, 2] - centre[1][None, :], sides[0, 3] - centre[0][:, None]]  # fmt: skip
    raw = torch.stack(gaps).div(4).clamp_min(1e-3).log()
    logits = torch.where(heat[0] > 0.02, heat[0], 1e-6).logit(eps=1e-6)
    maps = torch.cat([logits, raw])[None].numpy()
    found = DECODERS["centre"].of({"maps": maps}, Setting(Head(lowest=0.5)), (64, 64))
    got = sorted(map(tuple, np.rint(found.boxes).astype(int).tolist()))
    assert got == [(1, 50, 9, 58), (4, 4, 28, 20), (40, 8, 60, 60)]
    assert weight[0, 3, 4] == 1


def test_what_is_aside_is_not_judged():
    aside = torch.tensor([[[0.0, 0, 32, 32, 0, ASIDE], [40, 40, 60, 60, 0, OBJECT]]])
    heat, _, weight, judged = heat_maps(aside, 1, (16, 16), (4.0, 4.0))
    assert judged[0, :8, :8].sum() == 0
    assert judged.sum() == 256 - 64
    assert (heat[0, 0, :8, :8] == 0).all()
    assert weight.sum() > 0


def test_unlikeness_is_one_less_giou():
    first = torch.tensor([0.0, 0, 10, 10]).view(1, 4, 1, 1)
    second = torch.tensor([5.0, 0, 15, 10]).view(1, 4, 1, 1)
    apart = torch.tensor([20.0, 0, 30, 10]).view(1, 4, 1, 1)
    assert unlikeness(first, first).item() == pytest.approx(0, abs=1e-6)
    assert unlikeness(first, second).item() == pytest.approx(1 - 1 / 3)
    assert unlikeness(first, apart).item() == pytest.approx(1 + 10 / 30)


def objective(**options) -> BoxObjective:
    return BoxObjective(Distill(crop=32, **options), torch.zeros(1, 1, 6))


def test_a_student_that_says_what_its_teacher_says_has_no_soft_loss():
    maps = torch.randn(2, 2 + 4, 8, 8)
    target = torch.zeros(2, 3, 6)
    terms = objective().terms(maps, target, maps)
    assert terms["soft"].item() == pytest.approx(0, abs=1e-5)
    other = maps.clone()
    other[:, 2:] += 0.5
    assert objective().terms(other, target, maps)["soft"] > 0.1
    other = maps.clone()
    other[:, :2] -= 1
    assert objective().terms(other, target, maps)["soft"] > 0.01
    assert imitation(maps[:, :2], maps[:, :2]).item() == pytest.approx(0, abs=1e-7)


def test_boxes_that_the_teacher_does_not_see_hardly_count():
    teacher = torch.full((1, 1 + 4, 8, 8), -6.0)
    teacher[:, 1:] = 0
    teacher[0, 0, 2, 2] = 4.0
    there, elsewhere = teacher.clone(), teacher.clone()
    there[0, 1:, 2, 2] += 1
    elsewhere[0, 1:, 6, 6] += 1
    none = torch.zeros(1, 1, 6)
    loss = objective()
    assert loss.terms(there, none, teacher)["soft"] > 0.5
    assert loss.terms(elsewhere, none, teacher)["soft"] < 1e-3


def test_the_label_loss_leads_to_the_boxes():
    boxes = torch.tensor([[[4, 4, 12, 12, 0, 1], [16, 8, 30, 30, 1, 1]]]).float()
    maps = torch.zeros(1, 2 + 4, 8, 8)
    maps[:, :2] = -2
    maps.requires_grad_()
    optimizer = torch.optim.Adam([maps], lr=0.1)
    loss = objective()
    first = float(loss.hard(maps, boxes).detach())
    for _ in range(150):
        optimizer.zero_grad()
        loss.hard(maps, boxes).backward()
        optimizer.step()
    assert float(loss.hard(maps, boxes).detach()) < first / 10
    given = {"maps": maps.detach().numpy()}
    found = DECODERS["centre"].of(given, Setting(Head(lowest=0.5)), (32, 32))
    assert sorted(found.classes.tolist()) == [0, 1]
    assert found.boxes[found.classes.argsort()] == pytest.approx(boxes[0, :, :4].numpy(), abs=1.0)


def test_distances_are_held_so_that_no_loss_is_infinite():
    maps = torch.full((1, 5, 4, 4), 100.0, requires_grad=True)
    boxes = torch.tensor([[[0, 0, 8, 8, 0, 1]]]).float()
    loss = objective().hard(maps, boxes)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(maps.grad).all()
    assert torch.isfinite(corners(maps[:, 1:], (8.0, 8.0))).all()


class Mine:
    """A task that brings a loss."""

    def __init__(self, loss):
        self.loss = (loss, "own.py:loss")


def test_a_loss_of_the_users_stands_for_the_labels():
    loss = objective()
    loss.learn(Mine(lambda output, boxes: output.mean() * boxes.shape[2]), [])
    maps = torch.ones(1, 5, 4, 4)
    assert loss.hard(maps, torch.zeros(1, 1, 6)).item() == 6.0


@pytest.mark.parametrize("loss", [lambda o, b: o, lambda o, b: 3.0, lambda o, b: 1 / 0])
def test_a_loss_of_the_users_that_gives_no_number_is_refused(loss):
    own = objective()
    own.learn(Mine(loss), [])
    with pytest.raises(KDError) as caught:
        own.hard(torch.ones(1, 5, 4, 4), torch.zeros(1, 1, 6))
    assert caught.value.code == "task-loss"
    assert "one number" in str(caught.value.fix)


@pytest.mark.parametrize("layout", ["yolov5", "yolov8"])
def test_dense_heads_imitate_the_boxes_that_the_teacher_is_sure_of(layout):
    def rows(x: float = 10, sure: float = 0.9, other: float = 5) -> torch.Tensor:
        found = torch.zeros(1, 30, 4 + 2)
        found[..., 2:4] = 8
        found[0, 3, :2], found[0, 3, 4] = x, sure
        found[0, 7, 0] = other
        if layout == "yolov8":
            return found.mT
        objectness = found[..., 4:].amax(-1, keepdim=True)
        return torch.cat([found[..., :4], objectness, (found[..., 4:] > 0).float()], 2)

    loss = objective()
    loss.learn(Mine(lambda output, boxes: output.mean()), [])
    none = torch.zeros(1, 1, 6)
    assert loss.terms(rows(), none, rows())["soft"].item() == 0
    assert loss.terms(rows(x=14), none, rows())["soft"] > 0.1
    assert loss.terms(rows(sure=0.4), none, rows())["soft"] > 0.1
    assert loss.terms(rows(other=25), none, rows())["soft"].item() == 0


def test_a_head_without_a_loss_of_its_own_is_told_so():
    with pytest.raises(KDError) as caught:
        objective().terms(torch.zeros(1, 84, 100), torch.zeros(1, 1, 6), None)
    assert caught.value.code == "task-loss"
    assert "task.loss" in str(caught.value.fix)
    assert "kd" in str(caught.value.fix)
