"""Factories and weights: what a spec may name, and what is refused."""

import json
import pickle
import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.user_code import factory_sources, load_factory
from kdcompile.core.weight_files import files_of
from kdcompile.delta.tensors import read_student
from kdcompile.models import factory
from kdcompile.models.csrnet import build
from kdcompile.models.factory import build_model, load_weights, write_weights
from kdcompile.models.weights import read_weights

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


def test_a_factory_imports_what_lies_beside_it(folder):
    (folder / "blocks").mkdir()
    (folder / "blocks" / "wide.py").write_text("WIDTH = 5\n")
    (folder / "narrow.py").write_text("WIDTH = 3\n")
    code = "from torch import nn\nfrom blocks.wide import WIDTH\nimport narrow\n"
    lazy = "    import narrow\n    return nn.Conv2d(WIDTH, narrow.WIDTH, 1)\n"
    (folder / "model.py").write_text(f"{code}def build():\n{lazy}")
    sources = {p.relative_to(folder).as_posix() for p in factory_sources("model.py:build", folder)}
    assert sources == {"model.py", "narrow.py", "blocks/wide.py"}
    assert build_model("model.py:build", folder).weight.shape == (3, 5, 1, 1)


def test_two_specs_do_not_share_a_module_of_one_name(folder):
    other = folder.parent / "other"
    other.mkdir()
    for place, width in ((folder, 3), (other, 4)):
        (place / "narrow.py").write_text(f"WIDTH = {width}\n")
        text = "from torch import nn\nimport narrow\n"
        (place / "model.py").write_text(
            f"{text}def build():\n    return nn.Linear(2, narrow.WIDTH)\n"
        )
    for place, width in ((folder, 3), (other, 4), (folder, 3)):
        assert build_model("model.py:build", place).out_features == width
    assert [p for p in sys.path if p in (str(folder), str(other))] == [str(folder)]


def test_a_file_beside_the_spec_hides_no_installed_module(folder):
    (folder / "torch.py").write_text("raise ImportError('the wrong one')\n")
    assert isinstance(build_model("model.py:build", folder), nn.Conv2d)


def test_an_installed_factory_is_its_whole_package(folder, monkeypatch):
    package = folder.parent / "site" / "networks_of_mine"
    (package / "parts").mkdir(parents=True)
    for name in ("__init__.py", "build.py", "parts/__init__.py", "parts/wide.py"):
        (package / name).write_text("")
    monkeypatch.syspath_prepend(str(package.parent))
    found = factory_sources("networks_of_mine.build:build", folder)
    assert {p.relative_to(package).as_posix() for p in found} == {
        "__init__.py", "build.py", "parts/__init__.py", "parts/wide.py",
    }  # fmt: skip


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


@pytest.mark.parametrize(("counted", "read"), [(7, 7), (10**6, 65504)])
def test_a_counter_in_half_precision_is_read_as_a_counter(tmp_path, counted, read):
    """`{n: t.half() for ...}` of a batch norm, whose long training is infinite in float16."""
    model, trained = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    trained.num_batches_tracked.fill_(counted)
    trained.running_mean.fill_(0.5)
    halved = {name: tensor.half() for name, tensor in trained.state_dict().items()}
    save_file(halved, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert model.num_batches_tracked.dtype == torch.int64
    assert int(model.num_batches_tracked) == read
    assert model.running_mean.tolist() == [0.5, 0.5]


def test_another_integer_in_half_precision_is_refused(tmp_path):
    model = nn.Conv2d(1, 2, 3)
    model.register_buffer("places", torch.arange(3))
    halved = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_file(halved, tmp_path / "w.safetensors")
    with pytest.raises(KDError, match="places is float16, the model has int64"):
        load_weights(model, tmp_path / "w.safetensors")


def test_torch_files_load_without_running_code(tmp_path):
    model = nn.Conv2d(1, 2, 3)
    torch.save(_state(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.weight, torch.ones(2, 1, 3, 3))

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle ran code",))

    for name, content, code in (
        ("trap.pt", pickle.dumps(Trap(), protocol=2), "weights-unsafe"),
        ("torn.pt", b"PK\x03\x04torn", "weights-unreadable"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KDError) as error:
            load_weights(model, tmp_path / name)
        assert error.value.code == code
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


COMPLEX = torch.ones(2, dtype=torch.complex64)
ODD = {
    "an expanded tensor: 8796093022208 bytes, of which the file has 4": lambda: torch.ones(
        1
    ).expand(1 << 41),
    "a sparse tensor (sparse_coo)": lambda: torch.eye(3).to_sparse(),
    "a sparse tensor (sparse_csr)": lambda: torch.eye(3).to_sparse_csr(),
    "on the device meta": lambda: torch.ones(3, device="meta"),
    "quantised (qint8)": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "complex64": lambda: COMPLEX,
    "complex64; only real": lambda: COMPLEX.conj(),
}


@pytest.mark.filterwarnings("ignore")  # torch's, on each of these
@pytest.mark.parametrize("form", ODD)
def test_tensors_that_are_no_plain_values_are_refused(form, tmp_path):
    torch.save({"bias": torch.ones(1), "weight": ODD[form]()}, tmp_path / "w.pt")
    for read in (read_weights, read_student):
        with pytest.raises(KDError) as error:
            read(tmp_path / "w.pt")
        assert error.value.code == ("weights-dtype" if "complex" in form else "weights-form")
        assert f"weight is {form}" in error.value.message


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "net", "ema"])
def test_the_weights_of_a_checkpoint_are_read_and_its_file_is_left(name, tmp_path, caplog):
    path, more = tmp_path / "last.ckpt", {"epoch": 3, "hyper_parameters": {}, "lr_schedulers": []}
    torch.save({name: _state(), **more}, path)
    before = path.read_bytes()
    with caplog.at_level("INFO", "kdcompile"):
        state, _ = read_weights(path)
    assert torch.equal(state["weight"], torch.ones(2, 1, 3, 3))
    assert f"last.ckpt: the weights under '{name}' are taken" in caplog.text
    assert path.read_bytes() == before


def test_a_checkpoint_that_leaves_a_choice_is_refused(tmp_path):
    torch.save({name: _state() for name in ("model", "ema")}, tmp_path / "w.pt")
    with pytest.raises(KDError) as error:
        read_weights(tmp_path / "w.pt")
    assert error.value.code == "weights-unreadable"
    assert "under each of 'model', 'ema'" in error.value.message
    assert error.value.fix == "say which: set teacher.entry = 'model'"


def test_one_of_several_state_dicts_is_named(tmp_path):
    saved = {"model": _state(), "ema": {"module": {n: t + 1 for n, t in _state().items()}},
             "optimizer": {"state": _state()}}  # fmt: skip
    torch.save(saved, tmp_path / "w.pt")
    assert torch.equal(read_weights(tmp_path / "w.pt", "model")[0]["bias"], torch.zeros(2))
    assert torch.equal(read_weights(tmp_path / "w.pt", "ema.module")[0]["bias"], torch.ones(2))
    with pytest.raises(KDError) as error:
        read_weights(tmp_path / "w.pt", "ema.modul")
    assert error.value.code == "weights-entry"
    assert error.value.fix == "set teacher.entry to one of model, ema.module"


def test_the_one_state_dict_under_any_name_is_taken(tmp_path):
    torch.save({"teacher": _state(), "optimizer": _state(), "epoch": 3}, tmp_path / "w.pt")
    assert set(read_weights(tmp_path / "w.pt")[0]) == {"weight", "bias"}


def test_a_lightning_checkpoint_with_its_loss(tmp_path, caplog):
    inside = {f"model.{n}": t for n, t in _state().items()} | {"loss.weight": torch.ones(3)}
    torch.save({"state_dict": inside, "optimizer_states": [{}], "epoch": 1,
                "pytorch-lightning_version": "2.5"}, tmp_path / "last.ckpt")  # fmt: skip
    model = nn.Conv2d(1, 2, 3)
    with caplog.at_level("INFO", "kdcompile"):
        load_weights(model, tmp_path / "last.ckpt")
    assert torch.equal(model.weight, torch.ones(2, 1, 3, 3))
    assert "and 1 other tensors too" in caplog.text


def test_weights_in_shards(tmp_path):
    save_file({"weight": _state()["weight"].half()}, tmp_path / "model-1.safetensors")
    save_file({"bias": _state()["bias"]}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    named = {"weight": "model-1.safetensors", "bias": "model-2.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": named}))
    model = nn.Conv2d(1, 2, 3)
    load_weights(model, index)
    assert torch.equal(model.weight, torch.ones(2, 1, 3, 3))
    assert [path.name for path in files_of(index)] == [index.name, *sorted(named.values())]
    with pytest.raises(KDError, match="folder") as error:
        read_weights(tmp_path)
    assert error.value.fix == f"name the index of its shards: {index}"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"weight_map": {"weight": "absent.safetensors"}}', "weights-missing"),
        ('{"weight_map": {"weight": "../spec/w.safetensors"}}', "weights-missing"),
        ('{"metadata": {}}', "weights-unreadable"),
        ("[", "weights-unreadable"),
    ],
)
def test_an_index_that_does_not_hold(text, code, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(KDError) as error:
        read_weights(tmp_path / "model.safetensors.index.json")
    assert error.value.code == code


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_programs_in_the_place_of_weights_are_named(tmp_path):
    model = nn.Conv2d(1, 2, 3).eval()
    torch.jit.save(torch.jit.script(model), tmp_path / "w.pt")
    torch.export.save(torch.export.export(model, (torch.ones(1, 1, 5, 5),)), tmp_path / "w.pt2")
    for name, says in (("w.pt", "TorchScript"), ("w.pt2", "program of torch.export")):
        with pytest.raises(KDError, match=says) as error:
            read_weights(tmp_path / name)
        assert error.value.code == "weights-unreadable"
    state = torch.jit.load(tmp_path / "w.pt").state_dict()  # what the first one's fix saves
    torch.save(state, tmp_path / "w-weights.pt")
    load_weights(nn.Conv2d(1, 2, 3), tmp_path / "w-weights.pt")


def test_no_fix_names_a_file_that_is_there(tmp_path):
    (tmp_path / "w.pt").write_text("weights")
    (tmp_path / "w-weights.pt").write_text("mine")
    with pytest.raises(KDError) as error:
        read_weights(tmp_path / "w.pt")
    assert "'w-weights-2.pt'" in error.value.fix


class Classifier(nn.Linear):
    def __init__(self, num_classes=5, width=3):
        super().__init__(width, num_classes)


def test_a_factory_has_arguments_and_as_many_classes_as_the_weights(tmp_path, monkeypatch):
    given = {"teacher": {"model": "x:y", "arguments": {"width": 4}, "weights": tmp_path / "w.pt"},
             "data": {"format": "points-jsonl", "root": tmp_path}}  # fmt: skip
    monkeypatch.setattr(factory, "load_factory", lambda name, folder: Classifier)
    for classes in (5, 9):
        torch.save(Classifier(classes, 4).state_dict(), tmp_path / "w.pt")
        assert factory.load_teacher(Spec.model_validate(given)).out_features == classes
    torch.save(Classifier(5, 3).state_dict(), tmp_path / "w.pt")
    with pytest.raises(KDError, match=r"weight is \(5, 3\), the model has \(5, 4\)"):
        factory.load_teacher(Spec.model_validate(given))


def test_torchvision_s_factories_take_classes_by_keyword(tmp_path, monkeypatch):
    monkeypatch.setattr(factory, "load_factory", lambda name, folder: lambda **k: Classifier(**k))
    assert factory.takes_classes("torchvision.models:resnet18", tmp_path, {})
    assert not factory.takes_classes("torchvision.models:resnet18", tmp_path, {"num_classes": 3})
    assert not factory.takes_classes("mine.py:build", tmp_path, {})


def test_timm_makes_the_network_and_downloads_nothing(tmp_path, monkeypatch):
    made = []

    def create_model(name, pretrained=True, **kwargs):
        made.append((name, pretrained, kwargs))
        return Classifier()

    timm = types.ModuleType("timm")
    timm.__spec__, timm.create_model = ModuleSpec("timm", None), create_model
    timm.list_models = lambda: ["resnet18"]
    monkeypatch.setitem(sys.modules, "timm", timm)
    build_model("timm:resnet18", tmp_path, {"in_chans": 1})
    assert made == [("resnet18", False, {"in_chans": 1})]


def test_where_timm_is_not_installed_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for act, code in ((build_model, "timm-missing"), (factory_sources, "factory-missing")):
        with pytest.raises(KDError) as error:
            act("timm:resnet18", tmp_path)
        assert error.value.code == code
        assert "pip install" in error.value.fix
        assert "timm" in error.value.fix


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.", "_orig_mod.", "_orig_mod.module."])
def test_the_prefix_of_a_wrapper_is_left_out(prefix, tmp_path, caplog):
    torch.save({prefix + name: tensor for name, tensor in _state().items()}, tmp_path / "w.pt")
    model = nn.Conv2d(1, 2, 3)
    with caplog.at_level("INFO", "kdcompile"):
        load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.weight, torch.ones(2, 1, 3, 3))
    assert f"every name starts with {prefix!r}, which is left out" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {f"backbone.{n}": t for n, t in s.items()},
        lambda s: {"module.weight": s["weight"], "bias": s["bias"]},
        lambda s: {f"module.{n}": t for n, t in s.items()} | {"module.more": torch.ones(1)},
        lambda s: {"module.weight": s["weight"]},
    ],
)
def test_names_that_differ_otherwise_are_refused(change, tmp_path):
    torch.save(change(_state()), tmp_path / "w.pt")
    with pytest.raises(KDError) as error:
        load_weights(nn.Conv2d(1, 2, 3), tmp_path / "w.pt")
    assert error.value.code == "weights-mismatch"


def test_a_network_that_has_the_prefix_itself_keeps_it(tmp_path):
    network = nn.ModuleDict({"model": nn.Conv2d(1, 2, 3)})
    torch.save({f"model.{name}": tensor for name, tensor in _state().items()}, tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt")
    assert torch.equal(network["model"].weight, torch.ones(2, 1, 3, 3))
