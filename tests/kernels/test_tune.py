"""The choice of a configuration: measured once per shape class and card, and kept."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch

from kdcompile.kernels import _tune

CONFIGS = ({"BLOCK": 64}, {"BLOCK": 128}, {"BLOCK": 256})
CUDA = torch.device("cuda", 0)


class OutOfResourcesError(Exception):
    """Stands for Triton's."""


class PTXASError(Exception):
    """Stands for Triton's."""


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A card that is not there: BLOCK 128 is the fastest; `measured` and `capturing` are ours."""
    state = SimpleNamespace(
        name="NVIDIA H100 80GB", capturing=False, measured=[], ms={64: 3.0, 128: 1.0, 256: 2.0}
    )

    def do_bench(call, return_mode):
        assert return_mode == "median"
        block = call()
        state.measured.append(block)
        if isinstance(state.ms[block], Exception):
            raise state.ms[block]
        return state.ms[block]

    errors = SimpleNamespace(OutOfResources=OutOfResourcesError, PTXASError=PTXASError)
    triton = SimpleNamespace(
        __version__="3.6.0",
        testing=SimpleNamespace(do_bench=do_bench),
        runtime=SimpleNamespace(errors=errors),
    )
    monkeypatch.setattr(_tune, "triton", triton)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: state.name)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    monkeypatch.setenv("KDCOMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDCOMPILE_TUNE", raising=False)

    def new_process():
        for name, empty in (("_known", {}), ("_kept", {}), ("_loaded", set())):
            monkeypatch.setattr(_tune, name, empty)
        state.measured.clear()

    state.new_process = new_process
    new_process()
    return state


def _best(key=(torch.float16, 64), configs=CONFIGS, device=CUDA, kernel="loss"):
    return _tune.best(kernel, key, configs, device, lambda config: config["BLOCK"])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((0, 1, 2), (1, 1, 2)), ((3, 4, 5), (4, 4, 8)), ((1000, 1024, 1025), (1024, 1024, 2048))],
)
def test_shape_class(sizes, expected):
    assert _tune.shape_class(*sizes) == expected


def test_measured_once(card):
    assert _best() == 128
    assert card.measured == [64, 128, 256]
    assert _best() == 128
    assert card.measured == [64, 128, 256]


def test_kept_for_the_next_process(card):
    _best()
    card.new_process()
    assert _best() == 128
    assert card.measured == []
    path = _tune.tuned_path(card.name)
    assert path.name == "tuned-nvidia-h100-80gb-triton-3.6.0.json"
    assert list(json.loads(path.read_text()).values()) == [1]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


@pytest.mark.parametrize(
    "other",
    [
        {"key": (torch.float16, 128)},
        {"key": (torch.bfloat16, 64)},
        {"kernel": "another"},
        {"configs": CONFIGS[1:]},
    ],
)
def test_what_makes_another_choice(card, other):
    _best()
    card.measured.clear()
    _best(**other)
    assert card.measured


def test_another_card_has_its_own_file(card):
    _best()
    card.new_process()
    card.name, card.ms[256] = "NVIDIA L4", 0.5
    assert _best() == 256
    assert len(list(_tune.tuned_path(card.name).parent.iterdir())) == 2


def test_changed_configurations_are_measured_anew(card):
    _best()
    card.new_process()
    assert _best(configs=(*CONFIGS[:2], {"BLOCK": 256, "num_warps": 8})) == 128
    assert card.measured == [64, 128, 256]


def test_never_inside_a_graph(card):
    """Captured, the default serves and nothing is kept; a choice made before is used."""
    card.capturing = True
    assert _best() == 64
    assert card.measured == []
    assert not _tune.tuned_path(card.name).exists()
    card.capturing = False
    assert _best() == 128
    card.capturing = True
    assert _best() == 128
    card.new_process()
    assert _best() == 128
    assert card.measured == []


@pytest.mark.parametrize("error", [OutOfResourcesError, PTXASError, torch.OutOfMemoryError])
def test_a_configuration_without_room_is_skipped(card, error):
    card.ms[128] = error("too much")
    assert _best() == 256


def test_no_room_for_any_keeps_nothing(card):
    card.ms = dict.fromkeys(card.ms, OutOfResourcesError("too much"))
    assert _best() == 64
    assert not _tune.tuned_path(card.name).exists()


def test_other_errors_are_not_hidden(card):
    card.ms[64] = ValueError("a mistake of ours")
    with pytest.raises(ValueError, match="a mistake"):
        _best()


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '{"loss": "fast"}', '{"loss": null}'])
def test_a_broken_file_is_replaced(card, text):
    path = _tune.tuned_path(card.name)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert _best() == 128
    card.new_process()
    assert _best() == 128
    assert card.measured == []


def test_a_choice_beyond_the_configurations_does_no_harm(card):
    _best()
    path = _tune.tuned_path(card.name)
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), 77)))
    card.new_process()
    assert _best() in (64, 128, 256)


def test_processes_add_to_one_file(card):
    _best()
    _tune._load(card.name)
    path = _tune.tuned_path(card.name)
    path.write_text(json.dumps({**json.loads(path.read_text()), "of another process": 2}))
    _best(kernel="later")
    kept = json.loads(path.read_text())
    assert kept["of another process"] == 2
    assert len(kept) == 3


def test_a_folder_that_cannot_be_written_is_said(card, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="tuned anew in each process"):
        assert _best() == 128
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _best() == 128  # said once, kept for this process


def test_default_where_nothing_can_be_measured(card, monkeypatch):
    assert _best(device=torch.device("cpu")) == 64
    assert _best(configs=CONFIGS[2:]) == 256
    monkeypatch.setenv("KDCOMPILE_TUNE", "0")
    assert _best() == 64
    assert card.measured == []


def test_forced(card):
    with _tune.config(4):
        assert _best() == 128
        with _tune.config(0):
            assert _best() == 64
        assert _best(device=torch.device("cpu")) == 128
    assert card.measured == []


def test_a_key_must_be_hashable():
    """On a CPU too, where the key is not needed: it would fail on the GPU alone."""
    with pytest.raises(TypeError):
        _best(key=([1],), device=torch.device("cpu"))
