"""A teacher that is an ONNX file or a program of torch.export, from the spec to the bundle."""

import shutil

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from kdcompile.bundle.manifest import read_bundle
from kdcompile.cli import cli
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.models.factory import load_teacher
from kdcompile.passes.keys import key_parts
from kdcompile.targets import load

SIDE, SHAPE = 16, (1, 3, 16, 16)
SPEC = """
target = "jetson"
[task]
kind = "classification"
[teacher]
onnx = "teacher.onnx"
[data]
format = "imagefolder"
root = "data"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
[student]
budget = { width = 0.5 }
[distill]
recipe = "kd"
steps = 10
batch = 8
crop = 16
scale = [1.0, 1.0]
evaluations = 1
[export]
shape = [1, 3, 16, 16]
[quantize]
images = 8
[gates]
accuracy = { max_increase = "60%", margin = "90%", required = false }
parity = { min_sqnr_db = 10 }
"""
PROGRAM = ('onnx = "teacher.onnx"', 'program = "teacher.pt2"')


def network():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a spec, photos, and one trained network in both forms."""
    folder, random = tmp_path_factory.mktemp("forms"), np.random.default_rng(0)
    images, labels = [], []
    for split, count in (("train", 20), ("val", 8), ("test", 8)):
        for label in range(3):
            place = folder / "data" / split / "bgr"[label]
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.normal(90, 25, (SIDE, SIDE, 3))
                pixels[..., label] += 60
                pixels = pixels.clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
                images.append(pixels)
                labels.append(label)
    torch.manual_seed(0)
    made = network()
    x = torch.from_numpy(((np.stack(images) / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)).float()
    optimizer = torch.optim.Adam(made.parameters(), 0.01)
    for _ in range(25):
        optimizer.zero_grad()
        cross_entropy(made(x), torch.tensor(labels)).backward()
        optimizer.step()
    made.eval()
    (folder / "kdcompile.toml").write_text(SPEC)
    program = torch.export.export(made, (torch.zeros(SHAPE),))
    torch.export.save(program, folder / "teacher.pt2")
    torch.onnx.export(program, (), folder / "teacher.onnx", dynamo=True, external_data=False,
                      verbose=False)  # fmt: skip
    torch.save(made.state_dict(), folder / "reference.pt")
    return folder


pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")


def call(*args, code=0):
    found = CliRunner().invoke(cli, list(map(str, args)), standalone_mode=True)
    assert found.exit_code == code, (found.output, found.exception)
    return found.output


def spec_of(folder, *changes):
    text = SPEC
    for old, new in changes:
        text = text.replace(old, new)
    (folder / "other.toml").write_text(text)
    return folder / "other.toml"


def test_both_forms_are_the_network_that_was_saved(site):
    made = network()
    made.load_state_dict(torch.load(site / "reference.pt"))
    x = torch.randn(4, *SHAPE[1:])
    for path in (site / "kdcompile.toml", spec_of(site, PROGRAM)):
        with torch.no_grad():
            found, asked = load_teacher(load_spec(path))(x), made.eval()(x)
        assert (found - asked).abs().max() < 1e-5 * asked.abs().max()


def test_an_onnx_file_is_planned_and_built(site):
    assert "teacher" in call("plan", site)
    call("build", site, "-o", site / "out")
    bundle = read_bundle(site / "out")
    assert bundle.manifest["task"] == "classification"
    student, teacher = (weights(path) for path in (bundle.model, site / "teacher.onnx"))
    assert 0 < student < 0.4 * teacher


def weights(path):
    return sum(int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer if t.data_type == 1)


def test_a_program_is_planned_and_distilled(site):
    path = spec_of(site, PROGRAM)
    assert "teacher" in call("plan", path)
    call("distill", path)


def keys(path):
    return key_parts(load_spec(path), load("jetson"), Hasher(path.parent / "hashes.json"))[
        "teacher"
    ]


def test_the_key_is_of_the_files_content_and_of_the_converters_code(site, tmp_path):
    shutil.copytree(site / "data", tmp_path / "data")
    for name in ("kdcompile.toml", "teacher.onnx"):
        shutil.copy(site / name, tmp_path)
    first, second = keys(site / "kdcompile.toml"), keys(tmp_path / "kdcompile.toml")
    assert first == second
    assert "models/onnx_import/reshaping.py" in first["source"]
    assert "models/program.py" in first["source"]
    with (tmp_path / "teacher.onnx").open("ab") as stream:
        stream.write(b"\x72\x00")  # an empty field more
    assert keys(tmp_path / "kdcompile.toml")["spec"]["teacher"] != first["spec"]["teacher"]


MODEL = ('onnx = "teacher.onnx"', 'model = "m.py:f"\nweights = "w.pt"')


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("teacher.onnx", 'teacher.onnx"\nmodel = "m.py:f'), "onnx stands alone, without model"),
        (("teacher.onnx", 'teacher.onnx"\nprogram = "t.pt2'), "without program"),
        (('onnx = "teacher.onnx"\n', ""), "model is missing"),
        (('onnx = "teacher.onnx"', 'model = "m.py:f"'), "weights is missing"),
    ],
)
def test_a_teacher_has_one_form(change, says, site):
    with pytest.raises(KDError) as error:
        load_spec(spec_of(site, change))
    assert error.value.code == "spec-invalid"
    assert says in error.value.message


def test_a_file_that_is_not_there(site):
    with pytest.raises(KDError) as error:
        keys(spec_of(site, ("teacher.onnx", "absent.onnx")))
    assert error.value.code == "onnx-missing"
    assert "--set teacher.onnx=PATH" in error.value.fix


def test_arguments_are_in_the_key(site):
    (site / "m.py").write_text("")
    torch.save({}, site / "w.pt")
    plain = keys(spec_of(site, MODEL))["spec"]["teacher"]
    more = (MODEL[0], MODEL[1] + "\narguments = { width = 2 }")
    assert keys(spec_of(site, more))["spec"]["teacher"] == plain | {"arguments": {"width": 2}}


def test_a_network_of_one_image_alone_is_refused(site, tmp_path):
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            x = self.layer(x.reshape(16, 12, 4)).permute(1, 2, 0)
            return x.reshape(-1)[None]

    program = torch.export.export(Alone(), (torch.zeros(SHAPE),))
    torch.export.save(program, tmp_path / "teacher.pt2")
    with pytest.raises(KDError) as error:
        load_teacher(load_spec(spec_of(tmp_path, PROGRAM)))
    assert error.value.code == "teacher-batch"
