"""Weights that must be refused: files that do not hold them, and tensors that do not fit."""

import io
import pickle
import tempfile
from pathlib import Path

import torch
from bad_inputs import MODEL, SPEC, BadInput, _weights, project
from safetensors.torch import load, load_file, save_file

from kdcompile.models.factory import build_model

SPEC_FILE, FILE = "kdcompile.toml", "w.safetensors"
DISTILL = ("distill",)


def good_weights() -> dict[str, torch.Tensor]:
    """The weights that the project comes with."""
    return load(_weights(MODEL))


def _saved(change):
    """The project with changed weights."""

    def make(folder: Path) -> None:
        project(folder)
        save_file(change(good_weights()), folder / FILE)

    return make


def _with(change, name: str = FILE):
    """The project whose weights are a file that a function writes."""

    def make(folder: Path) -> None:
        project(folder, spec=SPEC.replace(FILE, name))
        (folder / FILE).unlink()
        change(folder / name)

    return make


def _restored(folder: Path) -> None:
    """The right weights, as safetensors, and the spec that names them."""
    if (folder / FILE).is_dir():
        (folder / FILE).rmdir()
    (folder / FILE).write_bytes(_weights(MODEL))
    (folder / SPEC_FILE).write_text(SPEC)


def _set(pair: str):
    """A fix that sets a field on the command line."""
    return lambda folder: (*DISTILL, "--set", pair)


def _written(make_bytes):
    return lambda path: path.write_bytes(make_bytes())


def _torch_bytes(value) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _infinite() -> dict[str, torch.Tensor]:
    """Weights of the right names that are refused for their values, once they are read."""
    return {name: tensor / 0 for name, tensor in good_weights().items()}


class Trap:
    """Code in a pickle: it would leave a file."""

    def __reduce__(self):
        return (open, ("the-pickle-ran", "w"))


class _Whole(torch.nn.Conv2d):
    """A network that is pickled as it is."""


def _renamed(folder: Path) -> tuple[str, ...]:
    (folder / FILE).rename(folder / "w.pt")
    return (*DISTILL, "--set", "teacher.weights=w.pt")


def _unprefixed(folder: Path) -> tuple[str, ...]:
    """What `torch.save(model.backbone.state_dict(), 'w-weights.pt')` writes."""
    state = {n.removeprefix("backbone."): t for n, t in load_file(folder / FILE).items()}
    torch.save(state, folder / "w-weights.pt")
    return (*DISTILL, "--set", "teacher.weights=w-weights.pt")


def _odd(change):
    """The project whose weights are a torch file with one tensor of another form."""
    name = "body.bias"
    return _with(
        lambda path: torch.save({**good_weights(), name: change(good_weights()[name])}, path),
        "w.pt",
    )


def _two_factories(folder: Path) -> None:
    """Weights of `deep`, where the spec names `build`."""
    lines = ("", "def deep():", "    made = Counter(8)", "    made.head = nn.Conv2d(1, 1, 1)")
    project(folder, model="\n".join((MODEL, *lines, "    return made\n")))
    head = {"head.weight": torch.ones(1, 1, 1, 1), "head.bias": torch.ones(1)}
    save_file(_infinite() | head, folder / FILE)


def _other_width() -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "model.py").write_text(MODEL)
        state = build_model("model.py:Counter", Path(place)).state_dict()
    return {name: tensor / 0 for name, tensor in state.items()}


CASES = [
    BadInput(
        "no-weights", lambda f: (project(f), (f / FILE).rename(f / "trained.safetensors")),
        DISTILL, "weights-missing", _set("teacher.weights=trained.safetensors"),
        says=("there is no such file", "--set teacher.weights=PATH"),
    ),
    BadInput(
        "weights-that-are-a-folder", _with(lambda path: path.mkdir()), DISTILL,
        "weights-missing", _restored, says=("a folder",),
    ),
    BadInput(
        "empty-weights", _with(lambda path: path.touch()), DISTILL, "weights-unreadable",
        _restored, says=("the file is empty", "copy or save it again"),
    ),
    BadInput(
        "truncated-safetensors", _with(_written(lambda: _weights(MODEL)[:-40])), DISTILL,
        "weights-unreadable", _restored, says=("damaged", "copy or save it again"),
    ),
    BadInput(
        "safetensors-of-an-endless-header", _with(_written(lambda: b"\xff" * 64)), DISTILL,
        "weights-unreadable", _restored, says=("damaged",),
    ),
    BadInput(
        "truncated-torch-file",
        _with(_written(lambda: _torch_bytes(good_weights())[:-200]), "w.pt"), DISTILL,
        "weights-unreadable", _restored, says=("damaged",),
    ),
    BadInput(
        "text-for-weights", _with(lambda path: path.write_text("weights\n"), "w.pt"), DISTILL,
        "weights-unreadable", _restored, says=("torch.save did not write this file",),
    ),
    BadInput(
        "torch-file-named-safetensors", _with(_written(lambda: _torch_bytes(_infinite()))),
        DISTILL, "weights-unreadable", _renamed, after=1, then="weights-nonfinite",
        says=("torch.save wrote this file", "rename it to w.pt"),
    ),
    BadInput(
        "pickle-that-runs-code", _with(_written(lambda: pickle.dumps(Trap(), 2)), "w.pt"),
        DISTILL, "weights-unsafe", _restored,
        says=("io.open", "it was not loaded", "save the tensors alone"),
    ),
    BadInput(
        "torch-file-that-runs-code",
        _with(_written(lambda: _torch_bytes({**good_weights(), "x": Trap()})), "w.pt"),
        DISTILL, "weights-unsafe", _restored, says=("io.open",),
    ),
    BadInput(
        "whole-network-pickled", _with(_written(lambda: _torch_bytes(_Whole(3, 8, 3))), "w.pt"),
        DISTILL, "weights-unsafe", _restored, says=("bad_inputs_weights._Whole", "state_dict()"),
    ),
    BadInput(
        "checkpoint-of-two-networks",
        _with(_written(lambda: _torch_bytes(
            {"model": _infinite(), "ema": good_weights(), "epoch": 3})), "w.pt"),
        DISTILL, "weights-unreadable", _set("teacher.entry=model"), after=1,
        then="weights-nonfinite",
        says=("one under each of 'model', 'ema'", "set teacher.entry = 'model'"),
    ),
    BadInput(
        "expanded-weights", _odd(lambda t: torch.ones(1).expand(1 << 41)), DISTILL,
        "weights-form", _restored, says=("body.bias is an expanded tensor: 8796093022208 bytes",),
    ),
    BadInput(
        "weights-that-are-a-list", _with(_written(lambda: _torch_bytes([torch.ones(2)])), "w.pt"),
        DISTILL, "weights-unreadable", _restored, says=("no plain state_dict",),
    ),
    BadInput(
        "weights-of-another-width", _saved(lambda s: _other_width()), DISTILL,
        "weights-mismatch", _set("teacher.model=model.py:Counter"), after=1,
        then="weights-nonfinite",
        says=("body.weight is (4, 3, 3, 3), the model has (8, 3, 3, 3)", "name the factory"),
    ),
    BadInput(
        "weights-of-another-architecture", _two_factories, DISTILL, "weights-mismatch",
        _set("teacher.model=model.py:deep"), after=1, then="weights-nonfinite",
        says=("head.bias is not in the model",),
    ),
    BadInput(
        "weights-without-a-tensor",
        _saved(lambda s: {n: t for n, t in s.items() if n != "body.bias"}), DISTILL,
        "weights-mismatch", _restored, says=("body.bias is absent from the file",),
    ),
    BadInput(
        "weights-of-a-wrapped-network",
        _saved(lambda s: {f"backbone.{n}": t for n, t in s.items()}), DISTILL,
        "weights-mismatch", _unprefixed,
        says=("starts with 'backbone.'", "model.backbone.state_dict(), 'w-weights.pt'"),
    ),
    BadInput(
        "network-wrapped-without-its-weights",
        lambda f: project(f, model=MODEL.replace(
            "return made", "return nn.Sequential(made)")),
        DISTILL, "weights-mismatch", lambda f: (f / "model.py").write_text(MODEL) and None,
        says=("starts with '0.'", "let the factory return the network inside"),
    ),
    BadInput(
        "weights-in-integers", _saved(lambda s: {n: t.to(torch.int8) for n, t in s.items()}),
        DISTILL, "weights-dtype", _restored,
        says=("body.weight is int8, the model has float32", "before it was quantised"),
    ),
    BadInput(
        "complex-weights", _saved(lambda s: {n: t.to(torch.complex64) for n, t in s.items()}),
        DISTILL, "weights-dtype", _restored, says=("complex64",),
    ),
    BadInput(
        "weights-that-are-no-numbers",
        _saved(lambda s: s | {"body.bias": s["body.bias"] * float("nan")}), DISTILL,
        "weights-nonfinite", _restored, says=("body.bias holds NaN or infinity",),
    ),
    BadInput(
        "infinite-weights",
        _saved(lambda s: s | {"output.bias": s["output.bias"] + float("inf")}), DISTILL,
        "weights-nonfinite", _restored, says=("output.bias holds NaN or infinity",),
    ),
    BadInput(
        "weights-beyond-float32",
        _saved(lambda s: s | {"output.bias": s["output.bias"].double() + 1e300}), DISTILL,
        "weights-nonfinite", _restored, says=("output.bias",),
    ),
]  # fmt: skip
