"""Factories and weights: what a spec may name, and what is refused."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdcompile.errors import KDError
from kdcompile.factory import factory_sources, load_factory
from kdcompile.models.csrnet import build
from kdcompile.models.factory import build_model, load_weights, read_weights, write_weights

CODE = """
from torch import nn
def build():
    return nn.Conv2d(1, 2, 3)
def wrong():
    return 1
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "spec").mkdir()
    (tmp_path / "spec" / "model.py").write_text(CODE)
    (tmp_path / "outside.py").write_text(CODE)
    return tmp_path / "spec"


def test_file_and_installed_factories(folder):
    assert isinstance(build_model("model.py:build", folder), nn.Conv2d)
    assert load_factory("kdcompile.models.csrnet:build", folder) is build
    assert [p.name for p in factory_sources("model.py:build", folder)] == ["model.py"]
    assert [p.name for p in factory_sources("kdcompile.models.csrnet:build", folder)] == [
        "csrnet.py"
    ]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("model.py", "factory-syntax"),
        ("model.py:missing", "factory-missing"),
        ("absent.py:build", "factory-missing"),
        ("../outside.py:build", "factory-outside"),
        ("/etc/passwd.py:build", "factory-outside"),
        ("no.such.package:build", "factory-broken"),
        ("model.py:wrong", "factory-result"),
    ],
)
def test_refused_factories(folder, name, code):
    with pytest.raises(KDError) as error:
        build_model(name, folder)
    assert error.value.code == code


def test_a_link_out_of_the_folder_is_outside(folder):
    (folder / "link.py").symlink_to(folder.parent / "outside.py")
    with pytest.raises(KDError) as error:
        build_model("link.py:build", folder)
    assert error.value.code == "factory-outside"


def _state():
    return {"weight": torch.ones(2, 1, 3, 3), "bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("change", "code", "fragment"),
    [
        ({"weight": torch.ones(3, 1, 3, 3)}, "weights-mismatch", "weight is (3, 1, 3, 3)"),
        ({"extra": torch.ones(1)}, "weights-mismatch", "extra is not in the model"),
        ({"bias": None}, "weights-mismatch", "bias is absent"),
        ({"bias": torch.tensor([0.0, float("nan")])}, "weights-nonfinite", "bias"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, code, fragment):
    state = {k: v for k, v in {**_state(), **change}.items() if v is not None}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(KDError) as error:
        load_weights(nn.Conv2d(1, 2, 3), tmp_path / "w.safetensors")
    assert error.value.code == code
    assert fragment in error.value.message


def test_torch_files_load_without_running_code(tmp_path):
    model = nn.Conv2d(1, 2, 3)
    torch.save(_state(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.weight, torch.ones(2, 1, 3, 3))

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle ran code",))

    for name, content in (
        ("trap.pt", pickle.dumps(Trap(), protocol=2)),
        ("torn.pt", b"PK\x03\x04torn"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KDError) as error:
            load_weights(model, tmp_path / name)
        assert error.value.code == "weights-unreadable"
    with pytest.raises(KDError) as error:
        load_weights(model, tmp_path / "absent.pt")
    assert error.value.code == "weights-missing"


def test_a_truncated_safetensors_file(tmp_path):
    save_file(_state(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-10])
    with pytest.raises(KDError) as error:
        load_weights(nn.Conv2d(1, 2, 3), tmp_path / "w.safetensors")
    assert error.value.code == "weights-unreadable"


def test_csrnet_takes_the_trained_weights(csrnet_weights):
    model = build()
    assert sum(p.numel() for p in model.parameters()) == 16_263_489
    load_weights(model, csrnet_weights)
    assert torch.equal(model.output.weight, load_file(csrnet_weights)["output.weight"].float())
    assert model.eval()(torch.zeros(1, 3, 33, 41)).shape == (1, 1, 5, 6)


def test_weights_that_share_memory_are_written_and_read_back(tmp_path):
    shared = torch.arange(6.0).view(2, 3)
    write_weights(tmp_path / "w.safetensors", {"a": shared, "b": shared, "c": shared.T}, {"k": "v"})
    state, metadata = read_weights(tmp_path / "w.safetensors")
    assert metadata == {"k": "v"}
    assert torch.equal(state["a"], shared)
    assert torch.equal(state["b"], shared)
    assert torch.equal(state["c"], shared.T)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
