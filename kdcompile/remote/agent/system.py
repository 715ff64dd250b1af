"""Reads small files of the system, writes files whole, and names versions and the platform."""

from __future__ import annotations

import hashlib
import os
import platform
from typing import Any

MIB = 1 << 20


def version_of(module: Any) -> tuple[int, int]:
    """Major and minor version of a module."""
    major, minor = str(module.__version__).split(".")[:2]
    return int(major), int(minor)


def write_file(path: str, blob: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    temporary = f"{path}.{os.getpid()}.tmp"  # of this worker: two may build on one board
    with open(temporary, "wb") as stream:
        stream.write(blob)
    os.replace(temporary, path)


def platform_name() -> str:
    """Operating system and processor, such as `linux aarch64`."""
    return f"{platform.system()} {platform.machine()}".lower()


def first_line(path: str) -> str | None:
    """The first line of a file; None where it is empty or cannot be read."""
    return read_text(path).partition("\n")[0].strip("\0 ") or None


def read_text(path: str) -> str:
    """What a file says; empty where it is absent, not for this user, or goes meanwhile."""
    try:
        with open(path, errors="replace") as stream:
            return stream.read().strip("\0\n ")
    except OSError:
        return ""


def read_number(path: str) -> float | None:
    """The number in a file; None where there is none."""
    try:
        return float(first_line(path) or "")
    except ValueError:
        return None


def file_sha256(path: str) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        for piece in iter(lambda: stream.read(MIB), b""):
            found.update(piece)
    return found.hexdigest()
