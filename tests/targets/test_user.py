"""The user's own calibration of a target: read, written, refused where it is broken."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcompile import targets
from kdcompile.cli import cli
from kdcompile.core.errors import KDError
from kdcompile.core.store import digest
from kdcompile.targets import user

TABLE = {
    "format": 1,
    "target": "cpu",
    "mode": "default",
    "measured": "2026-01-02T03:04:05Z",
    "place": "here",
    "machine": 'a "quoted" machine\\',
    "backend": "onnxruntime",
    "backend_version": "1.32.0",
    "gpu_mhz": 918.0,
    "source": "kdcompile targets calibrate: 2 micro-benchmarks",
    "residual": 0.125,
    "covariance": [[0.04, -1e-07], [-1e-07, 1e-300]],
    "values": {"arithmetic": 0.1 + 0.2, "fp16.8": 3e-05},
    "observations": [
        {"name": "conv_fp32", "network": "conv", "precision": "fp32", "ms": 1.5},
        {"name": "conv_int8", "network": "conv", "precision": "int8", "ms": 2.0},
    ],
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty configuration folder of the user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def write(text, module="cpu"):
    path = user.path(module)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_written_is_read_to_the_last_bit(home):
    write(user.to_toml(TABLE))
    assert user.read_whole("cpu") == TABLE
    assert user.read("cpu") == {k: v for k, v in TABLE.items() if k != "observations"}


@pytest.mark.parametrize("text", ["a\nb", "\x00\x1f\x7f", "\U0001f600 \u00b5"])
def test_any_text_is_read_back(home, text):
    write(user.to_toml({**TABLE, "machine": text}))
    assert user.read_whole("cpu")["machine"] == text


def test_the_file_says_how_to_get_rid_of_it(home):
    first = user.to_toml(TABLE).splitlines()[0]
    assert first.startswith("#")
    assert "targets calibrate cpu`. Delete this file" in first


def test_it_is_part_of_the_target_and_of_its_keys(home):
    shipped = targets.load("cpu")
    assert shipped.calibration is None
    write(user.to_toml(TABLE))
    found = targets.load("cpu")
    assert found.calibration["values"]["fp16.8"] == 3e-05
    assert "observations" not in found.calibration
    assert digest(found.to_json()) != digest(shipped.to_json())
    assert json.loads(json.dumps(found.to_json()))["calibration"] == found.calibration
    assert targets.load("cpu", calibrated=False) == shipped
    assert targets.load("h100").calibration is None, "of the other targets nothing is known"


def test_it_holds_for_every_mode_and_alias(home):
    write(user.to_toml({**TABLE, "target": "jetson-orin-nano-8gb"}), "jetson-orin-nano-8gb")
    for name in ("jetson", "jetson-orin-nano-8gb@15W"):
        assert targets.load(name).calibration["target"] == "jetson-orin-nano-8gb"


def test_where_it_lies(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for value in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert user.path("cpu") == Path("/home/me/.config/kdcompile/targets/cpu.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/mine")
    assert user.path("t4") == Path("/etc/mine/kdcompile/targets/t4.toml")


BROKEN = {
    "no toml": (None, "values = ["),
    "format": ({"format": 2}, "format 2"),
    "target": ({"target": "t4"}, "it is of 't4'"),
    "text": ({"source": 3}, "source is no text"),
    "unknown": ({"efficiency": 1.0}, "efficiency is not known"),
    "none": ({"values": {}}, "values are not all positive"),
    "zero": ({"values": {"a": 0.0, "b": 1.0}}, "values are not all positive"),
    "words": ({"values": {"a": "x", "b": 1.0}}, "values are not all positive"),
    "truth": ({"values": {"a": True, "b": 1.0}}, "values are not all positive"),
    "residual": ({"residual": -0.1}, "residual"),
    "size": ({"covariance": [[0.1]]}, "symmetric 2 x 2"),
    "asymmetric": ({"covariance": [[0.1, 0.1], [0.0, 0.1]]}, "symmetric 2 x 2"),
    "negative": ({"covariance": [[-0.1, 0.0], [0.0, 0.1]]}, "symmetric 2 x 2"),
    "tile": ({"channel_tile": 0}, "channel_tile"),
    "flat": ({"covariance": [0.1, 0.1]}, "symmetric 2 x 2"),
}


def broken(changes):
    """The text of a file that the writer itself would refuse."""
    text = user.to_toml(TABLE)
    for key, value in changes.items():
        kept = tomllib.loads(text)
        kept[key] = value
        if key != "target":  # of which the writer knows no other
            with pytest.raises(KDError, match="calibration of cpu"):
                user.to_toml(kept)
        plain = {k: v for k, v in kept.items() if k not in ("values", "observations")}
        lines = [f"{k} = {json.dumps(v)}" for k, v in plain.items()]
        lines += ["[values]", *(f'"{k}" = {json.dumps(v)}' for k, v in kept["values"].items())]
        text = "\n".join(lines)
    return text


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_and_the_fix_works(home, case):
    changes, message = BROKEN[case]
    path = write(message if changes is None else broken(changes))
    with pytest.raises(KDError) as caught:
        targets.load("cpu")
    error = caught.value
    assert error.code == "calibration-invalid"
    assert changes is None or message in error.message
    assert error.where == str(path)
    assert "delete that file" in error.fix
    assert "kdcompile targets calibrate cpu" in error.fix
    path.unlink()
    assert targets.load("cpu").calibration is None


@pytest.mark.parametrize("key", ["residual", "values", "covariance", "source", "machine"])
def test_a_missing_key_is_named(home, key):
    kept = {k: v for k, v in TABLE.items() if k != key}
    with pytest.raises(KDError, match=f"{key} is missing"):
        user.to_toml(kept)


def test_a_file_that_cannot_be_read(home):
    user.path("cpu").mkdir(parents=True)
    with pytest.raises(KDError, match="cannot be read") as caught:
        targets.load("cpu")
    assert caught.value.code == "calibration-invalid"


def test_show_says_that_a_calibration_is_active(home):
    before = CliRunner().invoke(cli, ["targets", "show", "cpu"]).output
    assert "calibration" not in before
    path = write(user.to_toml(TABLE))
    line = CliRunner().invoke(cli, ["targets", "show", "cpu"]).output.splitlines()[-1]
    assert line.startswith("calibration")
    assert str(path) in line
    assert TABLE["source"] in line
    shown = json.loads(CliRunner().invoke(cli, ["targets", "show", "cpu", "--json"]).output)
    assert shown["calibration"]["residual"] == 0.125


def test_the_list_of_targets_needs_no_calibration(home):
    write("values = [")
    done = CliRunner().invoke(cli, ["targets"])
    assert done.exit_code == 0
    assert "cpu" in done.output


def test_a_user_without_a_home_has_no_calibration(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    assert user.read("cpu") is None
    assert targets.load("cpu").name == "cpu"
    with pytest.raises(NotADirectoryError):
        user.path("cpu").parent.mkdir(parents=True, exist_ok=True)
