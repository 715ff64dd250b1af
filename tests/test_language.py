"""User-facing strings and module docstrings use the field's terms, and say what is there."""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

import kdcompile
from kdcompile.cli import cli

PACKAGE = Path(kdcompile.__file__).parent
ROOT = PACKAGE.parent
FOLDERS = (PACKAGE, *(ROOT / name for name in ("kernels", "calib", "targets")))
OLD = {
    r"(?<!\.)\bphotos?\b(?!\.\w)": "image, or sample",  # but kdcompile.data.photo, Photo.label
    r"(?<!\bin )\bplaces?\b": "device, host or path, whichever it is",
    r"\btold\b": "reports, returns or logs",
    r"\bjudged?\b|\bjudges\b|\bjudging\b": "evaluated; a gate decides",
    r"\bat hand\b": "available",
    r"\bbeside\b": "with, or next to",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bin turns\b|\b(take|takes|took) turns\b": "interleaved",
    r"\brestless\b": "noisy",
    r"\boccasions?\b": "session",
    r"\bwhat was seen\b": "observations",
    r"\bthe card\b": "the GPU",
}
QUESTIONS = re.compile(
    r"(can|did|does|how|is|was|what|when|where|whether|which|who|whose|why|will)\b", re.IGNORECASE
)
LOGGED = frozenset(("debug", "info", "warning", "error", "exception"))
ERRORS = frozenset(("KDError", "ToolMissingError"))
# texts that keep an old term, each with the reason
ALLOWED: dict[str, str] = {}


@cache
def sources() -> dict[str, ast.Module]:
    """Each Python file of the product by its path in the repository."""
    paths = [path for folder in FOLDERS for path in sorted(folder.rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


def texts_of(node: ast.AST, constants: dict[str, str]) -> Iterator[str]:
    """The literal parts of an expression, with those of the module's constants that it names."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value
        elif isinstance(inner, ast.Name) and inner.id in constants:
            yield constants[inner.id]


def messages(tree: ast.Module) -> Iterator[str]:
    """The texts of a file's errors and log lines, and the help of its options."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    constants = {
        target.id: node.value.value
        for node in assigned
        for target in node.targets
        if isinstance(target, ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in ERRORS:  # the first argument is the code, which stays
            given = [*node.args[1:], *(k.value for k in node.keywords if k.arg != "code")]
        elif name in LOGGED and isinstance(node.func, ast.Attribute):
            given = node.args
        else:
            given = [keyword.value for keyword in node.keywords if keyword.arg == "help"]
        for argument in given:
            yield from texts_of(argument, constants)


def commands(command: click.Command) -> Iterator[click.Command]:
    """A command and those below it."""
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, "a listed command exists"
            yield from commands(inner)


@cache
def helps() -> dict[str, list[str]]:
    """The help of every command and of its options, by the file of the command's function.

    The help of an option that several commands share counts for the file that holds its text.
    """
    home = {text: path for path, tree in sources().items() for text in messages(tree)}
    found: dict[str, list[str]] = {}
    for command in commands(cli):
        assert command.callback is not None, "every command has a function"
        file = inspect.getsourcefile(inspect.unwrap(command.callback))
        own = Path(file or "").relative_to(ROOT).as_posix()
        found.setdefault(own, []).append(command.help or "")
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            found.setdefault(home.get(text, own), []).append(text)
    return found


def old_words(text: str) -> list[str]:
    """The old terms in a text, each with what to say in place of it."""
    if text in ALLOWED:
        return []
    found = ((re.search(pattern, text, re.IGNORECASE), say) for pattern, say in OLD.items())
    return [
        f"{match[0]!r} in {text.strip()[:60]!r}: say {say}"
        for match, say in found
        if match is not None and not match[0].isupper()  # PLACE names an argument
    ]


def docstring_problems(tree: ast.Module) -> Iterator[str]:
    """What keeps the first paragraph of a module's docstring from saying what is in the file."""
    text = ast.get_docstring(tree)
    if text is None:
        return
    summary = " ".join(text.split("\n\n")[0].split())
    words = summary.split()
    if "?" in summary:
        yield f"the docstring asks: {summary[:60]!r}"
    elif QUESTIONS.match(summary):
        yield f"the docstring begins with {words[0]!r}, not with what is in the file"
    if len(words) < 3 or not summary.endswith((".", ":", "?")):
        yield f"the docstring begins with no sentence: {summary[:60]!r}"
    yield from old_words(summary)


def problems(path: str, tree: ast.Module) -> list[str]:
    """Everything about a file that a reader of the field would stumble over."""
    found = list(docstring_problems(tree))
    for text in dict.fromkeys([*messages(tree), *helps().get(path, [])]):
        found += old_words(text)
    return found


@cache
def all_problems() -> dict[str, list[str]]:
    """The problems of each file that has some, by its path."""
    found = {path: problems(path, tree) for path, tree in sources().items()}
    return {path: each for path, each in found.items() if each}


def test_no_file_uses_an_old_term_or_hides_what_is_in_it():
    assert all_problems() == {}


def test_every_exception_is_needed():
    every = {text for tree in sources().values() for text in messages(tree)}
    every |= {text for texts in helps().values() for text in texts}
    assert ALLOWED.keys() - every == set()


@pytest.mark.parametrize(
    "text",
    ["name the photos", "a place with TensorRT", "measured in turns", "Mend the file.",
     "it lies beside the spec", "judged on them", "a restless machine", "one more occasion"],
)  # fmt: skip
def test_an_old_term_is_found(text):
    tree = ast.parse(f"""raise KDError("a-code", f"{text} {{x}}", where=HERE, fix="do it")""")
    assert [old_words(found) != [] for found in messages(tree)].count(True) == 1


@pytest.mark.parametrize(
    "text",
    ["--via PLACE runs it", "in place of it", "kdcompile.data.photo.Photo, or Photo.label",
     "the images next to it", "replace the placeholder"],
)  # fmt: skip
def test_other_words_are_left_alone(text):
    assert old_words(text) == []


@pytest.mark.parametrize(
    ("docstring", "found"),
    [
        ("Is it fast?", 1),
        ("What it costs.", 1),
        ("Costs.", 1),
        ("Costs of one step, in seconds.\n\nWhat was seen.", 0),
        ("Detect CPU contention during a measurement:\n\n    a list", 0),
    ],
)
def test_a_docstring_that_does_not_say_what_is_there_is_found(docstring, found):
    assert len(list(docstring_problems(ast.parse(repr(docstring))))) == found
