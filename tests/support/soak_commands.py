"""The commands that the soak kills and lets fail, and a finished project to run them in."""

import shutil
from dataclasses import dataclass, field

import numpy as np
from delta_site import write_site
from killed_builds import tiny_spec
from PIL import Image

VERDICTS = (0, 3, 5)
BUNDLE = "dist/tiny-jetson"
MAKE = ("delta", "make", "base.safetensors", "new.safetensors", "--spec", ".", "--loss", "2%")


@dataclass(frozen=True)
class Command:
    """What is run, in which folder of the project, and which stages of its store are to be made."""

    words: tuple[str, ...]
    gone: tuple[str, ...] = ()
    inside: str = "."
    lost: tuple[str, ...] = field(default=())


COMMANDS = (
    Command(("init", "fresh")),
    Command(("init", "--example", "digits", "fresh")),
    Command(("plan", "tiny"), ("",)),  # of an empty store
    Command(("plan", "tiny")),
    Command(("build", "tiny"), ("teacher", "search")),
    Command(("distill", "tiny"), ("distill",)),
    Command(("export", "tiny"), ("export",)),
    Command(("calibrate", "tiny"), ("calibrate",)),
    Command(("compile", "tiny"), ("compile",)),
    Command(("build", "tiny"), ("verify", "bundle"), lost=(BUNDLE,)),
    Command(("build", "tiny", "--json")),
    Command(("bundle", "tiny", "-o", "copied"), ("bundle",)),
    Command(("verify", BUNDLE)),
    Command(("run", BUNDLE, "photo.png", "other.png", "-o", "drawn")),
    Command(("report", BUNDLE)),
    Command(("bench", BUNDLE, "--seconds", "0.2", "--save", "kept.json", "--runs", "3")),
    Command((*MAKE, "--size", "100%", "-o", "made.delta"), inside="site"),
    Command(("delta", "apply", "base.safetensors", "kept.delta", "-o", "out.safetensors"),
            inside="site"),
    Command(("clean", "tiny")),
)  # fmt: skip
SHORT = ("--seconds", "0.2", "--processes", "1")
# what kills are tried on beside them
OTHERS = (
    Command(("search", "tiny"), ("search",)),
    Command(("plan", "tiny", "--label", "2", "--set", "data.unlabelled=pooled")),
    Command(("export", "tiny", "-o", "student.onnx")),
    Command(("bundle", "tiny", "--test-pack", "pack")),
    Command(("bisect", BUNDLE)),
    Command(("bisect", "tiny")),
    Command(("compare", BUNDLE, BUNDLE, *SHORT)),
    Command(("baseline", "init", BUNDLE, "first", *SHORT)),
    Command(("baseline", "update", BUNDLE, "kept", "--why", "a test", *SHORT)),
    Command(("targets", "calibrate", "cpu", "--seconds", "1")),
    Command(("doctor",)),
    Command(("targets",)),
    Command(("schema",)),
    Command(("recipes",)),
)


def finished_project(folder, run):
    """A project with its bundle, photos, and weights with a delta; its `Builds`.

    `run(folder, words)` runs a command and tells how it ended: `code`, `err`.
    """
    builds = tiny_spec(folder)
    ended = run(folder, ("build", "tiny"))
    assert ended.code in VERDICTS, ended.err
    for number, name in enumerate(("photo.png", "other.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "site").mkdir()
    write_site(folder / "site")
    words = (*MAKE, "--size", "100%", "-o", "kept.delta")
    ended = run(folder / "site", words)
    assert ended.code == 0, ended.err
    return builds


def project_for(command, finished, folder):
    """A copy of the project as the command finds it; where to run the command."""
    shutil.copytree(finished.folder, folder, symlinks=True)
    for stage in command.gone:
        shutil.rmtree(folder / "tiny" / ".kdcompile" / stage)
    for name in command.lost:
        shutil.rmtree(folder / name)
    return folder / command.inside
