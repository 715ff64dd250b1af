"""Templates of the bundle's text files."""

from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from kdcompile import __version__
from kdcompile.core.report import escape


def fill(template: str, **values: Any) -> str:
    """A template of `templates/` with its values; `version` is kdcompile's.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    environment = Environment(
        loader=PackageLoader("kdcompile.bundle"),
        autoescape=False,  # C++, text-proto and Markdown, which escape for themselves
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"literal": literal, "float32": float32, "cell": escape}
    return environment.get_template(template).render(version=__version__, **values)


def literal(text: str) -> str:
    """A string literal of C++ and of text-proto: UTF-8, other bytes than print in octal."""
    plain = "".join(
        f"\\{byte:03o}" if byte < 0x20 or byte >= 0x7F or byte in b'"\\' else chr(byte)
        for byte in text.encode()
    )
    return f'"{plain}"'


def float32(value: float) -> str:
    """A float literal of C++ that is the float32 nearest to the value."""
    text = f"{float(np.float32(value)):.9g}"
    return f"{text}f" if set(text) & set(".en") else f"{text}.0f"
