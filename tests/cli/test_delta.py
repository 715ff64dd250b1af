"""`kdcompile delta make` and `apply` as a user runs them."""

import json
from pathlib import Path

import pytest
from bad_inputs import project
from command_line import CommandLine, contents, refusal
from delta_site import updated, write_site
from documents import check_document
from safetensors.torch import save_file

from kdcompile.delta import make
from kdcompile.delta.tensors import read_student, weights_hash


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    write_site(tmp_path)
    monkeypatch.chdir(tmp_path)
    return CommandLine(monkeypatch, capsys)


MAKE = ("delta", "make", "base.safetensors", "new.safetensors", "-o", "to/d")
APPLY = ("delta", "apply", "base.safetensors", "to/d", "-o", "out/new.safetensors")
PHOTOS = ("--spec", ".", "--loss", "2%")


def test_a_delta_is_made_and_applied(command, tmp_path):
    code, _ = command(*MAKE, *PHOTOS, "--size", "100%")
    assert code == 0
    head, *rows, size, verdict, wrote = command.out.splitlines()
    assert head.split() == ["tensor", "kind", "bytes", "error"]
    assert len(rows) == 11
    assert f"{(tmp_path / 'to' / 'd').stat().st_size} bytes, " in size
    assert size.endswith("in fp16")
    assert verdict.startswith("passed: mae ")
    assert wrote == "wrote to/d"
    code, _ = command(*APPLY, *PHOTOS, "--new", "new.safetensors")
    assert code == 0
    assert command.out.splitlines() == [verdict, "wrote out/new.safetensors"]


def test_json_is_what_the_schema_says(command):
    assert command(*MAKE, *PHOTOS, "--size", "100%", "--json")[0] == 0
    made = json.loads(command.out)
    check_document("delta make", made)
    assert command(*APPLY, "--json")[0] == 0
    done = json.loads(command.out)
    check_document("delta apply", done)
    assert (done["result"], done["bytes"], done["test"]) == (made["result"], made["bytes"], None)


@pytest.mark.parametrize(
    ("words", "wanted", "said"),
    [
        ((*PHOTOS, "--size", "1%"), 3, "failed: the smallest that validation proves has"),
        (("--size", "1%"), 3, "failed: the smallest delta has"),
    ],
)
def test_what_cannot_be_had_is_exit_3_and_nothing_is_written(
    command, tmp_path, words, wanted, said
):
    code, _ = command(*MAKE, *words)
    assert code == wanted
    assert said in command.out
    assert command.out.endswith("nothing written\n")
    assert not (tmp_path / "to" / "d").exists()
    assert command(*MAKE, *words, "--json")[0] == wanted
    check_document("delta make", json.loads(command.out))


def test_too_few_photos_are_exit_5(command, tmp_path):
    text = (tmp_path / "kdcompile.toml").read_text()
    (tmp_path / "kdcompile.toml").write_text(text.replace("test:80", "test:5"))
    code, _ = command(*MAKE, *PHOTOS, "--size", "100%")
    assert code == 5
    assert "too few for a bound" in command.out


def test_an_update_that_harms_is_not_applied(command, tmp_path):
    command("delta", "make", "new.safetensors", "base.safetensors", "-o", "back", "--size", "100%")
    code, _ = command("delta", "apply", "new.safetensors", "back", "-o", "out", "--spec", ".",
                      "--loss", "0.000001%")  # fmt: skip
    assert code in (3, 5)
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
def test_the_new_weights_become_a_student_without_training(command, tmp_path):
    """What docs/delta.md says of the way from a build and back into one."""
    project(tmp_path)
    assert command("distill", ".", "--json")[0] == 0
    stage = json.loads(command.out)["path"]
    state, about = read_student(Path(stage))
    save_file(updated(state, 0.01), tmp_path / "new.safetensors", about)
    new, delta = tmp_path / "new.safetensors", tmp_path / "to" / "d"
    make(Path(stage), new, delta, size=4.0)  # the header alone is larger than these few weights
    assert command("delta", "apply", stage, "to/d", "-o", "new.safetensors", "--json")[0] == 0
    result = json.loads(command.out)["result"]
    sets = ("student.init=file", "student.weights=new.safetensors", "distill.steps=0")
    code, text = command("distill", ".", *(w for s in sets for w in ("--set", s)), "--json")
    assert code == 0, text
    assert weights_hash(read_student(Path(json.loads(command.out)["path"]))[0]) == result


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("delta make base new -o new", "new.safetensors"),
        ("delta make base new -o base", "base.safetensors"),
        ("delta make base new -o ./sub/../new.safetensors", "new.safetensors"),
        ("delta make base new -o link", "new.safetensors"),
        ("delta make link base -o new", "new.safetensors"),
        ("delta make stage base -o stage/student.safetensors", "stage/student.safetensors"),
        ("delta make base new -o teacher --spec .", "teacher.safetensors"),
        ("delta make base new -o kdcompile.toml --spec .", "kdcompile.toml"),
        ("delta apply base d -o d", "d"),
        ("delta apply base d -o new --new new --spec .", "new.safetensors"),
    ],
)
def test_no_input_is_written_over(words, lost, command, tmp_path):
    for name in ("sub", "stage"):
        (tmp_path / name).mkdir()
    make(tmp_path / "base.safetensors", tmp_path / "new.safetensors", tmp_path / "d", size=1.0)
    (tmp_path / "link").symlink_to("new.safetensors")
    (tmp_path / "stage/student.safetensors").write_bytes(
        (tmp_path / "new.safetensors").read_bytes()
    )
    before = contents(tmp_path)
    there = ("base", "new", "teacher")
    full = (f"{word}.safetensors" if word in there else word for word in words.split())
    block = refusal(command(*full), "delta-output", "would destroy it", "name another file with -o")
    assert Path(lost).name in block
    assert contents(tmp_path) == before
