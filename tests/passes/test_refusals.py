"""What a plan refuses because its build would, before anything is traced or trained."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bad_inputs_classes import CLASSIFIER, _spec
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensor

from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.splits import Splits
from kdcompile.models.factory import build_model
from kdcompile.passes.refusals import refuse_networks, refuse_settings, typical_size, warnings_of

GIVEN = {"family": "model.py:Classes", "seed": 0}


@pytest.fixture
def build(tmp_path):
    """A plan of a network's code, and its photos of classes 0 and 1."""

    def make(kind="classification", model=CLASSIFIER, sets=(), student="model.py:Classes"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "model.py").write_text(model)
        torch.save(build_model("model.py:build", tmp_path).state_dict(), tmp_path / "w.pt")
        spec = _spec(kind, "imagefolder").replace("w.safetensors", "w.pt")
        (tmp_path / "kdcompile.toml").write_text(spec.replace("model.py:Classes", student))
        return SimpleNamespace(spec=load_spec(tmp_path / "kdcompile.toml", sets))

    return make


def _photos(height=16, width=16, count=4, classes=("dark", "light")):
    photos = [
        Photo(f"{n}", array=np.zeros((height, width, 3), np.uint8), label=float(n % 2))
        for n in range(count)
    ]
    return Splits(photos, photos, photos, [], classes)


def _found(architecture=GIVEN):
    return {"search": SimpleNamespace(json=lambda _: architecture)}


def _wider(outputs):
    return CLASSIFIER.replace("nn.Conv2d(3, 2, 1)", f"nn.Conv2d(3, {outputs}, 1)").replace(
        "made.body.weight[0], made.body.weight[1] = -1.0, 1.0", "pass"
    ).replace("made.body.bias[0], made.body.bias[1] = 1.5, -1.5", "pass")  # fmt: skip


def test_what_fits_passes_and_is_not_computed(build, monkeypatch):
    seen = []
    plan = build()
    forward = torch.nn.Conv2d.forward
    monkeypatch.setattr(
        torch.nn.Conv2d, "forward", lambda self, x: (seen.append(x), forward(self, x))[1]
    )
    refuse_networks(plan, _photos(), _found())
    refuse_networks(plan, _photos(), {})  # its student is not known yet
    assert seen
    assert all(isinstance(x, FakeTensor) for x in seen)


def test_a_training_that_is_made_is_not_looked_at_again(build):
    refuse_networks(build("regression", _wider(8)), _photos(), {"distill": None})


@pytest.mark.parametrize("outputs", [2, 8])
def test_a_regression_of_several_values(build, outputs):
    with pytest.raises(KDError, match=r"needs one value an image") as error:
        refuse_networks(build("regression", _wider(outputs)), _photos(classes=None), {})
    assert error.value.code == "teacher-output"


@pytest.mark.parametrize("classes", [("dark", "light", "red"), None])
def test_labels_that_the_teacher_has_no_output_for(build, classes):
    plan = build(sets=["student.family=shrink"])
    photos = _photos(classes=classes)
    if classes is None:
        photos.val.append(Photo("more", array=photos.val[0].array, label=2.0))
    with pytest.raises(KDError) as error:
        refuse_networks(plan, photos, {})
    assert error.value.code == "labels-invalid"


MORE = (
    "\n\ndef more():\n    made = Classes()\n    made.body = nn.Conv2d(3, 5, 1)\n    return made\n"
)


def test_a_student_of_other_classes(build):
    plan = build(model=CLASSIFIER + MORE, student="model.py:more", sets=["distill.recipe=kd"])
    with pytest.raises(KDError, match=r"the student gives \(1, 5\)") as error:
        refuse_networks(plan, _photos(), _found(GIVEN | {"family": "model.py:more"}))
    assert error.value.code == "student-output"
    assert "class-relation" in error.value.fix


def test_a_network_that_reads_its_data_is_run(build):
    """It cannot be run on shapes alone, which is no reason to refuse it here."""
    reads = CLASSIFIER.replace(
        "return self.body", "assert image.sum() > -1\n        return self.body"
    )
    refuse_networks(build(model=reads), _photos(), _found())


def test_a_teacher_that_fails_on_a_crop(build):
    sized = CLASSIFIER.replace("return self", "image.view(1, 3, 256)\n        return self")
    with pytest.raises(KDError, match="fails on a crop of 24") as error:
        refuse_networks(build(model=sized, sets=["distill.crop=24"]), _photos(), _found())
    assert error.value.code == "teacher-forward"


@pytest.mark.parametrize(
    ("crop", "told", "refused"),
    [(16, 0, False), (22, 0, False), (23, 1, False), (32, 1, False), (33, 1, True)],
)
def test_crops_that_are_mostly_padding(build, crop, told, refused):
    spec = build(sets=[f"distill.crop={crop}"]).spec
    assert len(warnings_of(spec, _photos())) == told
    if told:
        assert (
            f"distill.crop = {crop} is larger than the images, which are 16 x 16"
            in (warnings_of(spec, _photos())[0])
        )
    if not refused:
        refuse_settings(spec, _photos())
        return
    with pytest.raises(KDError, match="76% of it would be padding") as error:
        refuse_settings(spec, _photos())
    assert error.value.code == "crop-larger"
    assert "set distill.crop to 16 or less" in error.value.fix


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["student.budget={speedup=2}"], ["student.budget.speedup is kept by"]),
        (["student.budget={latency_ms=2}"], ["student.budget.latency_ms is kept by"]),
        (["student.budget={macs=1000}"], []),
        (["student.budget={macs=1000}", "quantize.precision=auto"], ["away from the board quant"]),
    ],
)
def test_what_the_gpu_decides_for_a_dla_is_told(build, sets, told):
    sets = ["quantize.precision=fp16", "student.family=shrink", *sets]
    assert warnings_of(build(sets=sets, student="shrink").spec, _photos()) == []
    found = warnings_of(build(sets=[*sets, "compile.dla=0"], student="shrink").spec, _photos())
    assert [text[: len(start)] for text, start in zip(found, told, strict=True)] == told
    assert all("which has no latency model" in text for text in found)


@pytest.mark.parametrize(
    ("height", "width", "told"), [(16, 16, 0), (64, 64, 0), (16, 8, 0), (16, 7, 1), (3, 64, 1)]
)
def test_inputs_that_are_mostly_padding(build, height, width, told):
    """Larger photos are scaled down; those of 3 x 64 become 1 x 16."""
    found = warnings_of(build(sets=["distill.crop=8"]).spec, _photos(height, width))
    found = [text for text in found if text.startswith("export.shape, 16 x 16, is larger than")]
    assert len(found) == told


def test_sizes_are_read_from_the_heads_of_files_as_they_are_shown(tmp_path):
    path = tmp_path / "a.jpg"
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=turned)
    photos = [Photo("a", path=path), Photo("b", encoded=path.read_bytes())]
    (tmp_path / "b.png").write_bytes(b"no image")
    lost = Photo("c", path=tmp_path / "b.png")
    assert typical_size(Splits([*photos, lost], [], [], [])) == (40, 20)
    assert typical_size(Splits([lost], [], [], [])) is None


def test_an_unknown_recipe(build):
    with pytest.raises(KDError) as error:
        refuse_settings(build(sets=["distill.recipe=nonesuch"]).spec, _photos())
    assert error.value.code == "recipe-unknown"


@pytest.mark.parametrize(
    ("code", "sets"),
    [
        ("recipe-term", ["distill.weights={softt=1}"]),
        ("cache-mixed", ["distill.recipe=mixup", "distill.views=2"]),
        ("qad-precision", ["quantize.qad=true", "quantize.precision=fp16"]),
        ("qad-steps", ["quantize.qad=true", "distill.steps=0"]),
    ],
)
def test_settings_that_the_training_would_stop_on(build, code, sets):
    with pytest.raises(KDError) as error:
        refuse_settings(build(sets=sets).spec, _photos())
    assert error.value.code == code


@pytest.mark.parametrize(
    ("code", "sets"),
    [
        ("tap-missing", ["distill.recipe=fitnet", 'distill.taps=[["bdy", "body"]]']),
        ("recipe-taps", ["distill.recipe=fsp", 'distill.taps=[["body", "body"]]']),
        ("calib-nothing", ["quantize.qad=true"]),
    ],
)
def test_networks_that_the_training_would_stop_on(build, code, sets):
    with pytest.raises(KDError) as error:
        refuse_networks(build(sets=sets), _photos(), _found())
    assert error.value.code == code
    if code.startswith("tap"):
        fixed = [*sets[:1], 'distill.taps=[["body", "body"]]']
        refuse_networks(build(sets=fixed), _photos(), _found())


@pytest.mark.parametrize(
    ("recipe", "labels", "code"),
    [
        ("crd", [1.0, 1.0, 1.0], "recipe-photos"),
        ("crd", [1.0], "recipe-photos"),
        ("nd", [1.0, 1.0], "recipe-needs"),
        ("kd+nd", [1.0, 1.0], "recipe-needs"),
        ("kd", [7.0], "teacher-unjudged"),
    ],
)
def test_labels_that_the_training_would_stop_on(build, recipe, labels, code):
    photos = _photos(classes=None)
    train = [Photo(f"{n}", array=photos.val[0].array, label=x) for n, x in enumerate(labels)]
    val = train if code == "teacher-unjudged" else photos.val
    taps = 'distill.taps=[["body", "body"]]'
    plan = build(sets=[f"distill.recipe={recipe}", taps])
    with pytest.raises(KDError) as error:
        refuse_networks(plan, Splits(train, val, val, []), _found())
    assert error.value.code == code


def test_weights_that_do_not_fit_the_student(build, tmp_path):
    torch.save({"body.weight": torch.zeros(2, 3, 3, 3)}, tmp_path / "student.pt")
    weights = ['student.init="file"', f"student.weights={tmp_path / 'student.pt'}"]
    with pytest.raises(KDError) as error:
        refuse_networks(build(sets=weights), _photos(), _found())
    assert error.value.code == "weights-mismatch"
    weights[1] = f"student.weights={tmp_path / 'w.pt'}"
    refuse_networks(build(sets=weights), _photos(), _found())
