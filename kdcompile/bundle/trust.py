"""Whom a caller trusts to have made a bundle, and which bundle the caller means.

A signature covers content and not freshness: an older bundle by the same key, of another build or
for another target, passes as well as the newest, where its name, target and time are not pinned.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdcompile.core.errors import KDError, plain
from kdcompile.core.files import config_folder
from kdcompile.core.readers import read_toml

VARIABLE = "KDCOMPILE_TRUSTED_KEY"
EXPECTED = ("name", "target", "newer-than")
LARGEST = 1 << 16  # bytes of `trust.toml`, which has one line


@dataclass(frozen=True)
class Trust:
    """What a caller demands of a bundle.

    Args:
        key: public key that must have signed it; by default that of the environment or of
            `trust.toml`.
        expect: what its manifest must say: `name`, `target`, and with `newer-than` a time, after
            which it must have been made.

    Raises:
        KDError: `expect-invalid`, anything else is expected.
    """

    key: Path | None = None
    expect: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.expect.items():
            if key not in EXPECTED or not value:
                raise _invalid(f"{key}={value}")
            if key == "newer-than" and _moment(value) is None:
                raise _invalid(f"{key}={value}")

    @classmethod
    def of(
        cls, key: "str | os.PathLike[str] | None", expect: Mapping[str, str] | None
    ) -> "Trust | None":
        """What a caller demands of a bundle; None where nothing was said."""
        if key is None and not expect:
            return None
        return cls(None if key is None else Path(key), dict(expect or {}))

    def trusted_key(self) -> Path | None:
        """The file of the trusted public key: as given, of $KDCOMPILE_TRUSTED_KEY, of `trust.toml`.

        Raises:
            KDError: `trust-unreadable`, there is a `trust.toml` that names no key.
        """
        found = os.environ.get(VARIABLE)
        return self.key or (Path(found) if found else _key_of(config_folder() / "trust.toml"))

    def check(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Refuse a bundle that is not the one meant.

        Raises:
            KDError: `bundle-unexpected`.
        """
        for what, wanted in self.expect.items():
            found = manifest.get("created" if what == "newer-than" else what)
            if what == "newer-than":
                made, before = _moment(found), _moment(wanted)
                is_met = made is not None and before is not None and made > before
            else:
                is_met = found == wanted
            if not is_met:
                told = plain(str(found)[:200])
                key = "created" if what == "newer-than" else what
                raise KDError(
                    "bundle-unexpected",
                    f"the bundle's {key} is {told}, and --expect says {what}={plain(wanted)}",
                    where=str(folder.absolute()),
                    fix="get the bundle that you mean, or change --expect if it is this one",
                )


def parse_expected(text: str) -> dict[str, str]:
    """The value of `--expect`, such as `name=crowd,target=jetson,newer-than=2026-12-01`.

    Raises:
        KDError: `expect-invalid`, it is no such list, or has a key twice.
    """
    expected: dict[str, str] = {}
    for part in text.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        if key in expected:
            raise _invalid(part)
        expected[key] = value
    return expected


def _invalid(part: str) -> KDError:
    return KDError(
        "expect-invalid",
        f"nothing can be expected of a bundle by {plain(part[:200])}",
        where="--expect",
        fix="name=NAME, target=TARGET or newer-than=2026-12-01T12:00:00Z, separated by commas",
    )


def _moment(text: object) -> datetime | None:
    """A time of ISO 8601, in UTC where it says no zone; None where it is none."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=UTC)


def _key_of(path: Path) -> Path | None:
    """The key that `trust.toml` names, relative to its own folder; None without such a file."""
    try:
        values = read_toml(path, LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error
    except ValueError as error:
        raise _unreadable(path, str(error)) from error
    key = values.get("key")
    if set(values) != {"key"} or not isinstance(key, str) or not key:
        raise _unreadable(path, "it has other than one `key`")
    return path.parent / Path(key).expanduser()


def _unreadable(path: Path, reason: str) -> KDError:
    return KDError(
        "trust-unreadable",
        f"{path.name} does not say whom you trust: {plain(reason)}",
        where=str(path),
        fix='write one line, key = "key.pub", the path of the public key; or remove the file',
    )
