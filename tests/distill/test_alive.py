"""A student that cannot learn from where it starts is found before the first step."""

import copy
from pathlib import Path

import pytest
import torch
from tiny_training import network, photos
from torch import nn

from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError
from kdcompile.data.augment import Batch
from kdcompile.data.images import ImageStore
from kdcompile.distill import start as start_module
from kdcompile.distill.checks import dead
from kdcompile.distill.findings import start_findings
from kdcompile.distill.inherit import inherit
from kdcompile.distill.objective import OBJECTIVES
from kdcompile.distill.start import checked_start
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures
from kdcompile.tasks.metric import MAE, TOP1


def _closed(value=-100.0, last=None):
    """A network with a ReLU behind its output, which is closed for every image."""
    made = network(4, 0)
    made.append(last or nn.ReLU())
    nn.init.constant_(made[5].bias, value)
    return made


def _crops(number=4):
    torch.manual_seed(0)
    targets = torch.rand(number, 1, 8, 8)
    return [Batch(torch.rand(number, 1, 16, 16), targets, torch.arange(number))]


def _dead(student, crops=None):
    crops = crops or _crops()
    objective = OBJECTIVES["counting"](Distill(), torch.cat([b.target for b in crops]))
    return dead(student, crops, objective)


def test_a_closed_relu_passes_nothing():
    student = _closed()
    before = copy.deepcopy(student.state_dict())
    found = _dead(student)
    assert (found.crops, found.largest, found.spread, found.gradient) == (4, 0, 0, 0)
    assert student.training
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_an_open_one_does():
    assert _dead(_closed(value=0.1)) is None
    assert _dead(network(4, 0)) is None


def test_what_never_reaches_the_output_is_no_start():
    """The output layer's bias has a gradient; what is before a closed ReLU has none."""
    student = network(4, 0)
    nn.init.constant_(student[3].bias, -100.0)
    found = _dead(student)
    assert found.gradient > 0
    assert found.is_constant


def test_zero_weights_are_a_start():
    student = network(4, 0)
    nn.init.zeros_(student[5].weight)
    nn.init.zeros_(student[5].bias)
    assert _dead(student) is None


def test_a_batch_norm_opens_the_relu_in_training():
    student = _closed(last=nn.Sequential(nn.BatchNorm2d(1), nn.ReLU()))
    before = copy.deepcopy(student.state_dict())
    assert _dead(student) is None
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert _dead(student, _crops(1)) is not None  # one crop has no statistics to open it


class _Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = network(4, 0)

    def forward(self, x):
        return self.inside(x).detach()


def test_an_output_without_a_gradient_is_dead():
    found = _dead(_Detached())
    assert found.gradient == 0
    assert not found.is_constant


def _rare(seed=5, share=0.9):
    """A teacher whose ReLU is open for a tenth of its cells; its student of a quarter's width."""
    teacher = network(8, seed).append(nn.ReLU()).eval()
    images = torch.stack([torch.from_numpy(p.array).permute(2, 0, 1) for p in photos(12, 0)])
    images = images.float() / 127.5 - 1
    with torch.no_grad():
        teacher[5].bias -= teacher[:6](images).flatten().quantile(share)
    architecture = architectures(teacher, [1, 1, 16, 16], 2, 0, [0.25])[0]
    student = student_from_architecture(teacher, architecture, Path())
    return teacher, student, architecture, images


@pytest.mark.parametrize(("seed", "share"), [(5, 0.9), (3, 0.97), (1, 0.99)])
def test_a_teacher_that_ends_in_relu_gives_a_living_student(seed, share):
    teacher, student, architecture, images = _rare(seed, share)
    report = inherit(teacher, student, architecture, images.split(4))
    assert student.eval()(images).amax() > 0
    assert report["layers"][-1]["relative_error"] < 1


def _checked(spec, student, teacher=None, **options):
    train = photos(12, 0)
    store = ImageStore(train, 1, torch.device("cpu"))
    teacher = teacher or network(8, 0).eval()
    architecture = {"family": "shrink", "seed": 0}
    return checked_start(spec, teacher, student, architecture, store, **options)


@pytest.mark.parametrize("init", ["random", "inherit"])
def test_a_dead_student_is_refused(spec, monkeypatch, init):
    monkeypatch.setattr(start_module, "start_student", lambda *_: {} if init == "inherit" else None)
    with pytest.raises(KDError) as error:
        _checked(spec(f"student.init={init}"), _closed(), val=photos(6, 1))
    assert error.value.code == "student-dead"
    assert "differs by at most 0" in error.value.message
    assert "a gradient of norm 0" in error.value.message
    assert "ReLU" in error.value.fix
    assert error.value.where == "[student] init"


def test_a_dead_file_is_refused(spec, tmp_path):
    path = tmp_path / "dead.pt"
    torch.save(_closed().state_dict(), path)
    with pytest.raises(KDError, match="student-dead"):
        _checked(spec("student.init=file", f"student.weights={path}"), _closed(0.1))


def _counts(student):
    """Weights that count the squares: each lights four cells."""
    for layer in (student[0], student[3], student[5]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        middle = layer.kernel_size[0] // 2
        layer.weight.data[0, 0, middle, middle] = 1.0
    student[5].weight.data *= 0.25


def _started(monkeypatch, *biases):
    """Inheriting gives these biases of the output layer in turn (None: a counter); what it asks."""
    asked, left = [], list(biases)

    def inherited(spec, _teacher, student, *_):
        asked.append((spec.student.importance, spec.seed))
        bias = left.pop(0)
        if bias is None:
            _counts(student)
        else:
            nn.init.constant_(student[5].bias, bias)
        return {"importance": spec.student.importance}

    monkeypatch.setattr(start_module, "start_student", inherited)
    return asked


def test_a_dead_inherited_start_is_tried_otherwise(spec, monkeypatch):
    asked = _started(monkeypatch, -100.0, None)
    student = _closed()
    report = _checked(spec(), student, val=photos(6, 1))
    assert asked == [("activation", 1), ("taylor", 1)]
    assert student[5].weight.max() == 0.25
    assert report["importance"] == "taylor"
    assert [attempt["dead"] for attempt in report["attempts"]] == [True, False]
    assert not start_findings(MAE, report)


def test_the_best_of_bad_inherited_starts_is_taken_and_told(spec, monkeypatch, caplog):
    asked = _started(monkeypatch, 3.0, 1.0, 2.0)
    student = _closed()
    with caplog.at_level("WARNING", "kdcompile"):
        report = _checked(spec(), student, val=photos(6, 1))
    assert asked == [("activation", 1), ("taylor", 1), ("activation", 2)]
    assert student[5].bias.item() == 1.0
    (found,) = start_findings(MAE, report)
    assert found in caplog.text
    assert found.startswith("the inherited start is worse than a constant: validation mae")
    assert "6 photos, the best of 3 ways" in found
    constant, start = report["validation"]["constant"], report["validation"]["start"]
    assert start == report["attempts"][1]["start"] > constant
    assert f"{start:.4g} against {constant:.4g}" in found


def test_a_random_start_may_be_worse_than_a_constant(spec):
    student = _closed(3.0)
    assert _checked(spec("student.init=random"), student, val=photos(6, 1)) is None
    assert student[5].bias.item() == 3.0


def test_crops_without_anything_do_not_condemn_a_student(spec, monkeypatch):
    """Where every training crop is empty, whole validation photos tell."""
    monkeypatch.setattr(start_module, "dead", lambda *_: dead(_closed(), *_[1:]))
    assert _checked(spec("student.init=random"), network(4, 1), val=photos(6, 1)) is None
    with pytest.raises(KDError, match="student-dead"):
        _checked(spec("student.init=random"), network(4, 1))


@pytest.mark.parametrize(
    ("metric", "start", "says"),
    [(MAE, 2.1, 1), (MAE, 2.0, 0), (MAE, 1.9, 0), (TOP1, 2.1, 0), (TOP1, 1.9, 1)],
)
def test_what_is_worse_than_a_constant(metric, start, says):
    judged = {"photos": 6, "metric": metric.name, "start": start, "constant": 2.0}
    assert len(start_findings(metric, {"validation": judged})) == says
    assert not start_findings(metric, None)
