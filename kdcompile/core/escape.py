"""Text that may be anybody's, escaped for where it goes: a function for each output.

Names of files, folders, classes and layers, fields of specs and what boards say are such text.

    terminal, log            `plain` for a line, `plain_lines` for several
    Markdown                 `markdown`, also inside of a table
    HTML                     `visible`, and after it the templates' own escapes
    XML, such as JUnit's     `xml`, and after it the writer's own escapes
    GitHub's commands        `command_data`, `command_property`
    OpenMetrics              `metric_label`
    TOML, Python             `toml`, `python`
    C++, text-proto          `c_string`
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from kdcompile.core.errors import plain as plain  # lies there as boards have that file

# control characters, and those that turn the direction of what follows them: a name would be read
# as another one (Unicode Technical Report 36, section 2.5)
CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
HIDDEN = re.compile(f"[{CONTROL}{BIDI}]")
# what XML 1.0 (section 2.2) allows in a document, tab and line breaks included
NO_XML = re.compile(f"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[{BIDI}]")
NO_LABEL = re.compile("[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")
# what GitHub's Markdown reads within a line; a backslash makes it text (CommonMark 2.4)
SPECIAL = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")
MENTION = re.compile(r"(?<!\w)@|@(?=[\w-]+\.)")
EMOJI = re.compile(r":(?=[\w+-]+:)")
REPLACED = "\ufffd"


def first_line(error: BaseException) -> str:
    """What an error says first, or its type's name where it says nothing."""
    lines = (line for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__).strip()


def plain_lines(text: object) -> str:
    """Text of several lines for a terminal, each as `plain` has it; only `\\n` parts them."""
    return "\n".join(map(plain, str(text).split("\n")))


def visible(text: str) -> str:
    """Text without what no page shows, or what would turn the rest of the line around."""
    return HIDDEN.sub(REPLACED, text)


def markdown(text: object, longest: int | None = None) -> str:
    """Text that Markdown, also inside a table, shows as it is, on one line.

    Args:
        text: anything, such as the name of an image or a class.
        longest: characters that are kept of it.
    """
    text = visible(" ".join(str(text).split()))
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # a name must call nobody and link to nothing
    text = MENTION.sub("&#64;", SPECIAL.sub(r"\\\1", text)).replace("://", "&#58;//")
    return EMOJI.sub("&#58;", text).replace("www.", "www&#46;")


def xml(text: str) -> str:
    """Text with what XML cannot hold replaced by U+FFFD; the writer escapes the rest."""
    return NO_XML.sub(REPLACED, text)


def command_data(text: str) -> str:
    """A message of GitHub's workflow commands, of which no part is read as a line of its own.

    Source: `packages/core/src/command.ts` of actions/toolkit.
    """
    text = text.encode("utf-8", "replace").decode()  # a file's name may hold lone surrogates
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """The value of a property of such a command: it ends at a comma or a colon too."""
    return command_data(text).replace(":", "%3A").replace(",", "%2C")


def metric_label(text: str) -> str:
    """A label's value in OpenMetrics, without its quotes."""
    text = NO_LABEL.sub(REPLACED, text)
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def toml(value: Any) -> str:
    """A value of TOML: text, numbers, truth values, and arrays and tables of them.

    In text, what is not printed stands as its code; a lone surrogate, which TOML cannot hold, is
    replaced by U+FFFD.
    """
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {toml(one)}" for k, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)  # of None what no reader of TOML takes
    if isinstance(value, int | float):
        return repr(value)
    return '"' + "".join(map(_toml_letter, str(value))) + '"'


def _key(name: object) -> str:
    return str(name) if re.fullmatch(r"[A-Za-z0-9_-]+", str(name)) else toml(str(name))


def _toml_letter(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    number = ord(letter)
    if 0xD800 <= number <= 0xDFFF:
        return REPLACED
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def python(text: str) -> str:
    """A string literal of Python, in letters that every editor shows."""
    return ascii(text) if not text.isprintable() else repr(text)


def c_string(text: str) -> str:
    """A string literal of C++ and of text-proto: UTF-8, other bytes than print in octal."""
    inner = "".join(
        f"\\{byte:03o}" if byte < 0x20 or byte >= 0x7F or byte in b'"\\' else chr(byte)
        for byte in text.encode(errors="replace")
    )
    return f'"{inner}"'
