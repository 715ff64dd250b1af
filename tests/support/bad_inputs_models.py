"""Networks that must be refused: factories, teachers, students, budgets and taps."""

import re
import shutil
from pathlib import Path

import pytest
from bad_inputs import MODEL, SPEC, BadInput, project, replace
from bad_inputs_weights import DISTILL, SPEC_FILE, good_weights
from safetensors.torch import save_file

from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.passes.manager import make_plan

SEARCH, EXPLAIN = ("search",), ("distill", "--explain")
OUTPUT = "return self.output(torch.relu(self.body(image)))"
OWN = 'family = "model.py:Counter"'


def _code(old: str, new: str):
    """The project with other code; the weights fit it still."""
    assert MODEL.count(old) == 1, old
    return lambda folder: project(folder, model=MODEL.replace(old, new))


def _mended(folder: Path) -> None:
    (folder / "model.py").write_text(MODEL)


CASES = [
    BadInput(
        "teacher-factory-that-raises",
        _code("    made = Counter(8)", '    raise OSError("no such table")'), DISTILL,
        "factory-failed", _mended,
        says=("model.py:build failed: OSError: no such table", "model.py, line 16", "--debug"),
    ),
    BadInput(
        "factory-that-exits", _code("    made = Counter(8)", "    raise SystemExit"), DISTILL,
        "factory-failed", _mended, says=("SystemExit: no reason given",),
    ),
    BadInput(
        "factory-that-wants-arguments", _code("def build():", "def build(width):"), DISTILL,
        "factory-arguments", _mended,
        says=("missing a required argument: 'width'", "give each of its arguments a default"),
    ),
    BadInput(
        "factory-of-no-network", _code("return made", "return made.state_dict()"), DISTILL,
        "factory-result", _mended, says=("gave a OrderedDict", "return a torch.nn.Module"),
    ),
    BadInput(
        "network-without-weights", _code("return made", "return nn.ReLU()"), DISTILL,
        "factory-result", _mended, says=("a ReLU without weights", "torch.nn.ModuleList"),
    ),
    BadInput(
        "teacher-of-two-channels", _code(OUTPUT, OUTPUT + ".repeat(1, 2, 1, 1)"), DISTILL,
        "teacher-output", _mended,
        says=("(1, 2, 16, 16)", "a density map [N, 1, h, w]", "return the density alone"),
    ),
    BadInput(
        "teacher-of-two-outputs", _code(OUTPUT, OUTPUT.replace("return", "return image,")),
        DISTILL, "teacher-output", _mended, says=("tuple", "one tensor is needed"),
    ),
    BadInput(
        "teacher-that-is-not-finite", _code(OUTPUT, OUTPUT + " / 0"), DISTILL, "teacher-output",
        _mended, says=("not finite on the validation images", "data.mean and data.std"),
    ),
    BadInput(
        "teacher-that-raises", _code(OUTPUT, OUTPUT + ".view(7)"), DISTILL, "teacher-forward",
        _mended, says=("fails on an input of [1, 3, 16, 16]", "export.shape"),
    ),
    BadInput(
        "teacher-that-knows-nothing", _code("torch.relu(", "torch.zeros_like("), DISTILL,
        "teacher-useless", _mended, says=("a constant predictor has", "train the teacher"),
    ),
]  # fmt: skip

STUDENT = """
class Odd(Counter):
    def forward(self, image):
        {0}

class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Odd()

    def forward(self, image):
        return self.inner(image)
"""


def _student(forward: str):
    """The project with a student of its own, which cannot be."""
    spec = SPEC.replace(OWN, 'family = "model.py:Student"')
    return lambda folder: project(folder, spec=spec, model=MODEL + STUDENT.format(forward))


def _plain(folder: Path) -> None:
    """The student that can be."""
    _mended(folder)
    (folder / SPEC_FILE).write_text(SPEC)


def _proposed(folder: Path) -> tuple[str, ...]:
    """The budget that the refusal proposes."""
    with pytest.raises(KDError) as error:
        make_plan(load_spec(folder / SPEC_FILE)).make("search")
    found = re.search(r"set budget = (\{ \w+ = \S+ \})", error.value.fix)
    assert found is not None, error.value.fix
    return (*SEARCH, "--set", f"student.budget={found.group(1)}")


def _costs(family: str, budget: str):
    """The project with a budget that its students do not keep."""
    spec = SPEC.replace(OWN, f'family = "{family}"')
    return lambda folder: project(folder, spec=spec.replace("width = 1.0", budget))


def _unasked(folder: Path) -> None:
    """The project with the teacher's own network as the student, and no budget."""
    spec = SPEC.replace(OWN, 'family = "model.py:build"').replace("budget = { width = 1.0 }\n", "")
    project(folder, spec=spec)


def _of_a_file(folder: Path) -> None:
    """The project with a student from a file of weights alone."""
    project(folder, spec=SPEC.replace(OWN, 'init = "file"\nweights = "student.safetensors"'))
    save_file(good_weights(), folder / "student.safetensors")


def _distilled(folder: Path) -> None:
    """The student that `distill` wrote for this teacher."""
    (found,) = (folder / ".kdcompile" / "distill").glob("*/student.safetensors")
    shutil.copyfile(found, folder / "student.safetensors")


def _antialiased(folder: Path) -> None:
    """A student of an operator that older TensorRT does not read."""
    resize = "torch.nn.functional.interpolate(image, scale_factor={}, mode='bilinear'{})"
    twice = resize.format(2, "").replace("image", resize.format(0.5, ", antialias=True"))
    _student(OUTPUT.replace("(image)", f"({twice})"))(folder)


def _tapped(taps: str):
    """The project with pairs of feature maps to compare."""
    spec = SPEC.replace('recipe = "none"', f'recipe = "skt"\ntaps = {taps}')
    return lambda folder: project(folder, spec=spec)


def _paired(folder: Path) -> tuple[str, ...]:
    """Modules of equal stride."""
    return (*EXPLAIN, "--set", 'distill.taps=[["body", "body"]]')


def _turned(budget: str):
    """The project with a teacher that turns the order of its channels round: it keeps them all."""
    model = MODEL.replace(
        "self.body = nn.Conv2d",
        "self.token = nn.Linear(width, width)\n        self.body = nn.Conv2d",
    )
    model = model.replace(
        OUTPUT,
        OUTPUT.replace(
            "self.body(image)",
            "self.token(self.body(image).flip(1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).flip(1)",
        ),
    )
    spec = SPEC.replace(OWN, 'family = "shrink"').replace("width = 1.0", budget)
    return lambda folder: project(folder, spec=spec, model=model, weights=model)


def _own(folder: Path) -> tuple[str, ...]:
    """A smaller network of the user's own."""
    small = "\n\nclass Small(Counter):\n    def __init__(self):\n        super().__init__(2)\n"
    (folder / "model.py").write_text((folder / "model.py").read_text() + small)
    return (*SEARCH, "--set", "student.family=model.py:Small")


CASES += [
    BadInput(
        "teacher-that-cannot-be-narrower", _turned("width = 0.5"), ("plan",),
        "student-not-smaller", _own,
        says=("width = 0.5 was requested", "keeps 100% of the teacher's", "token (", "body ("),
    ),
    BadInput(
        "speed-up-of-a-teacher-that-cannot-be-narrower", _turned("speedup = 50"), SEARCH,
        "student-not-smaller",
        lambda f: (*_own(f), "--set", "student.budget={latency_ms = 100}"),
        says=("speedup = 50 was requested", "token ("),
    ),
    BadInput(
        "student-that-reads-its-data",
        _student(OUTPUT.replace("return ", "y = ") + "\n        return y if y.sum() > 0 else -y"),
        SEARCH, "export-failed", _plain,
        says=("depends on values of its data", "module inner (Odd)", "model.py, line 26",
              "torch.where"),
    ),
    BadInput(
        "student-of-an-operator-that-onnx-lacks",
        _student("return torch.linalg.svd(self.output(torch.relu(self.body(image))))[0]"),
        SEARCH, "export-failed", _plain,
        says=("aten._linalg_svd has no ONNX form", "module inner (Odd)", "replace that module"),
    ),
    BadInput(
        "student-that-raises", _student(OUTPUT + ".view(7)"), SEARCH, "network-forward", _plain,
        says=("on an input of [1, 3, 16, 16]", "module inner (Odd)", "model.py, line 25"),
    ),
    BadInput(
        "student-of-two-outputs", _student(OUTPUT.replace("return", "return image,")), SEARCH,
        "export-failed", _plain, says=("2 outputs", "one density out"),
    ),
    BadInput(
        "student-factory-that-raises",
        lambda f: (_student(OUTPUT)(f), replace(f / "model.py", "self.inner = Odd()", "1 / 0")),
        SEARCH, "factory-failed", _plain, says=("model.py:Student failed: ZeroDivisionError",),
    ),
    BadInput(
        "student-of-another-output", _student(OUTPUT + "[:, :, ::2, ::2]"), DISTILL,
        "student-output", _plain,
        says=("(1, 1, 8, 8)", "the teacher (1, 1, 16, 16)", "the teacher's output shape"),
    ),
    BadInput(
        "planned-student-of-another-output", _student(OUTPUT + "[:, :, ::2, ::2]"), ("plan",),
        "student-output", _plain, says=("the student gives (1, 1, 8, 8) for a crop of 16",),
    ),
    BadInput(
        "student-whose-operator-the-target-lacks", _antialiased,
        (*SEARCH, "--target", "jetson-xavier-nx"), "export-opset",
        lambda folder: (*SEARCH, "--target", "jetson-orin-nano-8gb"),
        says=("Resize has no form in opset 16", "inner", "a target with a newer TensorRT"),
    ),
    BadInput(
        "impossible-speedup", _costs("shrink", "speedup = 1e6"), SEARCH, "budget-impossible",
        _proposed, says=("no student of this family reaches", "the smallest one: speedup",),
    ),
    BadInput(
        "student-over-its-budget", _costs("model.py:Counter", "macs = 9"), SEARCH,
        "student-not-smaller", _proposed, says=("the given student needs",),
    ),
    BadInput(
        "student-of-too-many-parameters", _costs("model.py:Counter", "width = 0.25"), ("plan",),
        "student-not-smaller", _proposed,
        says=("has 117 parameters, 0.502 of the teacher's 233", "budget = { width = 0.5022 }"),
    ),
    BadInput(
        "student-as-large-as-the-teacher", _unasked, ("plan",), "student-not-smaller", _proposed,
        says=("has 233 parameters, 1 of the teacher's 233", "budget = { macs = "),
    ),
    BadInput(
        "student-file-without-architecture", _of_a_file, SEARCH, "weights-architecture",
        _distilled, says=("do not name their architecture", "that kdcompile distill wrote"),
    ),
    BadInput(
        "tap-that-does-not-exist", _tapped('[["body", "boddy"]]'), EXPLAIN, "tap-missing",
        _paired,
        says=("the student has no feature map 'boddy' (did you mean 'body'?)", "body, output"),
    ),
    BadInput(
        "tap-of-no-map", _tapped('[["", "body"]]'), EXPLAIN, "tap-missing",
        _paired, says=("the teacher has no feature map ''",),
    ),
]  # fmt: skip
