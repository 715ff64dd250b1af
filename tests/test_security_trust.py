"""With a trusted key every command that takes a bundle refuses one that was changed and resealed.

The commands are those that click knows: one that is in neither table fails the first test.
"""

import ast
import json
import os
import shutil
from pathlib import Path

import click
import pytest
import tiny_bundle
from bench_samples import made
from command_line import CommandLine, contents

import kdcompile
from kdcompile.bundle.signature import VARIABLE, check_before_signing, sign_bundle
from kdcompile.bundle.trust import Trust
from kdcompile.cli import cli
from kdcompile.core.errors import KDError
from kdcompile.latency.baseline import make_baseline
from kdcompile.latency.request import Request

PACKAGE = Path(kdcompile.__file__).parent
# words of each command at every place where it takes a bundle, B; `spec` is a project
TAKES = {
    "baseline init": ["B name"],
    "baseline update": ["B net --why new --device c --folder kept"],
    "bench": ["B", "good --baseline base.json --reference B"],
    "bisect": ["B", "B --rung onnx"],
    "build": ["spec --baseline B", 'spec --set gates.previous.bundle="B"'],
    "bundle": ["B --merge device.json", "B --merge device.json --sign key.pem"],
    "compare": ["B good", "good B"],
    "report": ["B", "B --json", "B good", "good B -o page.html"],
    "run": ["B photo.png", "B photo.png --onnx"],
    "verify": ["B", "B --parity", "B --ci", "spec --baseline B"],
}
TAKES_NONE = {
    "baseline show", "calibrate", "clean", "compile", "delta apply", "delta make", "distill",
    "doctor", "export", "init", "plan", "plugins", "recipes show", "schema", "search",
    "targets calibrate", "targets show", "targets validate",
}  # fmt: skip


def leaves(group, *before):
    """The names of all commands, those of groups too."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, *before, name)
        else:
            yield " ".join((*before, name))


def test_every_command_is_known():
    assert set(leaves(cli)) == {*TAKES, *TAKES_NONE}


def test_a_bundle_is_read_in_one_place():
    """`open_bundle` asks for the signature; who reads a bundle past it does not."""
    allowed = {"bundle/signature.py", "bundle/manifest.py"}
    callers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            if isinstance(node, ast.Attribute | ast.Name) and name == "read_bundle":
                callers.add(path.relative_to(PACKAGE).as_posix())
    assert callers == allowed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A spec, a signed bundle as `good`, and a changed one whose manifest is resealed.

    That one has its old signature as `wrong`, and none as `missing`.
    """
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    folder = tmp_path_factory.mktemp("trust")
    pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    plain, form = serialization.NoEncryption(), serialization.PublicFormat.SubjectPublicKeyInfo
    for name in ("key", "other"):
        key = ed25519.Ed25519PrivateKey.generate()
        (folder / f"{name}.pem").write_bytes(key.private_bytes(pem, kind, plain))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, form))
    tiny_bundle.copied(folder).rename(folder / "good")
    sign_bundle(folder / "good", folder / "key.pem")
    for name in ("wrong", "missing"):
        shutil.copytree(folder / "good", folder / name)
        with (folder / name / "infer.py").open("a") as script:
            script.write("print('changed')\n")
        tiny_bundle.resealed(folder / name)
    (folder / "missing/manifest.sig").unlink()
    leave = shutil.ignore_patterns("bundle", ".kdcompile")
    shutil.copytree(tiny_bundle.built(), folder / "spec", ignore=leave)
    (folder / "device.json").write_text("{}")
    (folder / "kept/c").mkdir(parents=True)
    for file in (folder / "base.json", folder / "kept/c/net.json"):
        make_baseline(made(), folder / "good", file, "who", "why").write(file)
    return folder


@pytest.fixture
def command(site, monkeypatch, capsys):
    monkeypatch.chdir(site)
    monkeypatch.setenv(VARIABLE, str(site / "key.pub"))
    return CommandLine(monkeypatch, capsys)


@pytest.mark.parametrize("signature", ["wrong", "missing"])
@pytest.mark.parametrize(
    "words", [f"{name} {rest}" for name, each in TAKES.items() for rest in each]
)
def test_a_resealed_bundle_is_refused(words, signature, site, command):
    before = contents(site / signature)
    code, text = command(*(word.replace("B", signature) for word in words.split(" ")))
    assert (code, f"error[signature-{signature}]" in text) == (1, True), text
    assert contents(site / signature) == before


def test_the_signed_one_is_taken(command):
    assert command("report", "good") == (0, "")
    assert command("run", "good", "photo.png")[0] == 0
    command("verify", "good")
    assert "signature: signed by " in command.out
    code, text = command("bundle", "good", "--merge", "device.json", "--sign", "key.pem")
    assert (code, "error[merge-mismatch]" in text) == (1, True), text


def test_a_key_is_named_on_the_command_line_too(command, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    for words in (
        "report wrong", "bundle wrong --merge device.json", "run wrong photo.png", "bench wrong",
        "compare good wrong", "build spec --baseline wrong", "verify spec --baseline wrong",
        "baseline init wrong name", "bisect wrong",
    ):  # fmt: skip
        code, text = command(*words.split(), "--trusted", "key.pub")
        assert (code, "signature-wrong" in text) == (1, True), text
    code, text = command("report", "wrong")
    assert (code, text.startswith("warning: signed by ")) == (0, True)
    assert json.loads(Path("wrong/manifest.sig").read_text())["public_key_sha256"] in text
    assert command("bundle", "spec", "--trusted", "key.pub")[0] == 2


def test_an_earlier_bundle_is_held_against_the_named_key_where_it_is_used(
    site, command, monkeypatch, tmp_path
):
    """Hours after the beginning of a build another may lie at its place."""
    monkeypatch.delenv(VARIABLE)
    shutil.copytree(tiny_bundle.built(), tmp_path / "spec", ignore=shutil.ignore_patterns("bundle"))
    monkeypatch.setattr("kdcompile.api.check_previous", lambda spec, trust: None)
    words = ("verify", str(tmp_path / "spec"), "--baseline", "wrong", "--target", "jetson")
    code, text = command(*words, "--trusted", "key.pub")
    assert (code, "error[signature-wrong]" in text) == (1, True), text


@pytest.mark.parametrize(
    ("bundle", "key", "error", "says"),
    [
        ("wrong", "key.pem", "signature-wrong", "it is not of this manifest.json"),
        ("missing", "key.pem", "signature-missing", "kdcompile build --sign KEY"),
        ("good", "other.pem", "signature-wrong", "the key that is to sign is"),
        ("good", "key.pem", "merge-mismatch", "not made by this bundle's kit"),
    ],
)
def test_nothing_is_signed_anew_that_was_not_signed_so(
    bundle, key, error, says, site, command, monkeypatch
):
    """Also where nobody trusts a key: a new signature would vouch for what was changed."""
    monkeypatch.delenv(VARIABLE)
    before = contents(site / bundle)
    code, text = command("bundle", bundle, "--merge", "device.json", "--sign", key)
    assert (code, f"error[{error}]" in text, says in text) == (1, True, True), text
    assert contents(site / bundle) == before


EXPECTING = [
    "report good", "run good photo.png", "verify good", "bisect good --rung onnx", "bench good",
    "compare good good", "baseline init good name", "build spec --baseline good",
    "verify spec --baseline good",
]  # fmt: skip


@pytest.mark.parametrize("words", EXPECTING)
def test_a_bundle_that_is_not_the_one_meant_is_refused(words, command):
    about = tiny_bundle.read(Path("good"))
    met = f"name={about['name']},target={about['target']},newer-than=2020-01-01"
    if words.split()[0] in ("report", "run"):  # the others go on to work
        assert "unexpected" not in command(*words.split(), "--expect", met)[1]
    for wrong in ("name=other", "target=other", f"newer-than={about['created']}"):
        code, text = command(*words.split(), "--expect", wrong)
        assert (code, "error[bundle-unexpected]" in text) == (1, True), text
    merge = ["bundle", "good", "--merge", "device.json", "--expect", "name=other"]
    assert "error[bundle-unexpected]" in command(*merge)[1]
    with pytest.raises(KDError, match="name is"):
        kdcompile.load_bundle("good", expect={"name": "other"})


def test_every_command_that_takes_a_bundle_says_so():
    def named(name):
        group, _, below = name.partition(" ")
        return cli.commands[group].commands[below] if below else cli.commands[group]

    without = {
        name for name in (*TAKES, *TAKES_NONE)
        if not {"trusted", "expect"} <= {one.name for one in named(name).params}
    }  # fmt: skip
    assert without == TAKES_NONE


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("bench good/model.onnx", "artifact-unsigned"),
        ("compare good good/model.onnx", "artifact-unsigned"),
        ("baseline init good/model.onnx name", "artifact-unsigned"),
        ("compare base.json base.json", "bench-arguments"),
        ("build spec", "trust-idle"),
        ("verify spec", "trust-idle"),
    ],
)
def test_a_key_with_nothing_to_hold_it_against_is_told(words, error, command):
    for more in (("--trusted", "key.pub"), ("--expect", "name=crowd")):
        code, text = command(*words.split(), *more)
        assert (code, f"error[{error}]" in text) == (1, True), text


def test_the_older_bundle_of_a_baseline_answers_for_its_key_alone(site, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    given = Request(trusted=site / "key.pub", expect={"newer-than": "2999-01-01"})
    assert given.subject(site / "good", named=False).kind in ("onnx", "engine")
    for bundle, named, error in (
        ("good", True, "bundle-unexpected"),
        ("wrong", False, "signature-wrong"),
    ):
        with pytest.raises(KDError) as caught:
            given.subject(site / bundle, named=named)
        assert caught.value.code == error
    assert Request().subject(site / "good/model.onnx").kind == "onnx"


@pytest.mark.parametrize(
    "wrong", ["", "name", "name=", "nome=x", "name=a,name=b", "newer-than=now", "newer-than=9"]
)
def test_what_cannot_be_expected_is_a_usage_error(wrong, command):
    assert command("report", "good", "--expect", wrong)[0] == 2


def test_newer_is_later_by_the_clock_and_not_by_the_letters():
    for created, before, is_met in (
        ("2026-12-02T10:00:00Z", "2026-12-02T09:59:59Z", True),
        ("2026-12-02T10:00:00Z", "2026-12-02T10:00:00Z", False),
        ("2026-12-02T10:00:00Z", "2026-12-02T11:30:00+02:00", True),
        ("2026-12-02T10:00:00Z", "2026-12-02", True),
        ("yesterday", "2020-01-01", False),
        (None, "2020-01-01", False),
    ):
        trust = Trust(expect={"newer-than": before})
        if is_met:
            trust.check(Path("b"), {"created": created})
        else:
            with pytest.raises(KDError, match="created is"):
                trust.check(Path("b"), {"created": created})


def settings(text, monkeypatch, tmp_path):
    """A `trust.toml` of the user, in a folder of its own; the environment names no key."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "kdcompile/trust.toml"
    file.parent.mkdir()
    file.write_text(text)
    return file


@pytest.mark.parametrize("words", ["report B", "bench B", "compare B good", "spec --baseline B"])
def test_a_key_is_named_in_the_users_settings_too(words, site, command, monkeypatch, tmp_path):
    file = settings('key = "mine.pub"', monkeypatch, tmp_path)
    shutil.copy(site / "key.pub", file.parent / "mine.pub")
    words = words.replace("spec", "build spec")
    code, text = command(*words.replace("B", "missing").split())
    assert (code, "error[signature-missing]" in text) == (1, True), text
    assert command("report", "good") == (0, "")


@pytest.mark.parametrize("text", ["", "key = 1", 'kay = "x"', "key", 'key = ""', "#" * 70_000])
def test_settings_that_name_no_key_are_not_passed_over(text, command, monkeypatch, tmp_path):
    settings(text, monkeypatch, tmp_path)
    code, said = command("report", "good")
    assert (code, "error[trust-unreadable]" in said) == (1, True), said


def test_settings_that_never_end_are_not_waited_for(command, monkeypatch, tmp_path):
    file = settings("", monkeypatch, tmp_path)
    for make in (os.mkfifo, os.mkdir):
        file.unlink()
        make(file)
        assert "error[trust-unreadable]" in command("report", "good")[1]


def test_who_signs_what_nobody_vouches_for_says_so(site, command, monkeypatch):
    merge = ["--merge", "device.json", "--sign", "key.pem", "--resign-unverified"]
    for bundle in ("wrong", "missing"):  # a trusted key forbids it
        code, text = command("bundle", bundle, *merge)
        assert (code, f"error[signature-{bundle}]" in text) == (1, True), text
    monkeypatch.delenv(VARIABLE)
    assert "error[merge-mismatch]" in command("bundle", "missing", *merge)[1]
    assert command("bundle", "missing", *merge[:2], merge[-1])[0] == 2
    assert check_before_signing(site / "good", site / "key.pem")
    assert not check_before_signing(site / "missing", site / "key.pem", unverified=True)


def test_another_may_sign_what_a_trusted_key_has_signed(command):
    code, text = command("bundle", "good", "--merge", "device.json", "--sign", "other.pem")
    assert (code, "error[merge-mismatch]" in text) == (1, True), text


def test_reports_side_by_side_are_printed_and_written_once(command, site):
    words = "report", "good", "other", "-o", "page.html"
    shutil.copytree(site / "good", site / "other", dirs_exist_ok=True)
    try:
        assert command(*words) == (0, "")
        assert "good" in command.out.splitlines()[0]
        page = Path("page.html").read_text()
        assert page.startswith("<!doctype html>")
        code, text = command(*words)
        assert (code, "error[output-exists]" in text) == (1, True)
        assert command(*words, "--force")[0] == 0
        assert "error[output-unwritable]" in command(*words[:-1], "no/page.html")[1]
        assert command("report", "good", "-o", "page.html", "--force")[0] == 2
        assert command("report", "good", "other", "--json")[0] == 0
        assert len(json.loads(command.out)) == 2
        assert "error[report-same]" in command("report", "good", "good")[1]
    finally:
        shutil.rmtree(site / "other")
        Path("page.html").unlink(missing_ok=True)
