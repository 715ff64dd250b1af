"""The form of a bundle's JSON files, which anybody may have written: keys, types and the digest.

Like a baseline's, the digest of the manifest is no signature: it tells what was cut off or changed
by accident from what a build wrote.
"""

import math
import os
import unicodedata
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
)
from pydantic import model_validator as validator

from kdcompile.core.errors import KDError
from kdcompile.core.readers import hold
from kdcompile.core.store import digest

SCHEMA, DIGEST = 1, "digest"
NAME, SIGNATURE = "manifest.json", "manifest.sig"
UNLISTED = (NAME, SIGNATURE)  # what cannot have its hash in the manifest
LARGEST = 16 * 1024 * 1024  # bytes of a manifest: thousands of times what a build writes
MOST_PIXELS = 1 << 28  # of an input: more is no photo, and would take all memory
RESERVED = '\\:*?"<>|'  # of some file system


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} has characters that are not printed")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Sides = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Shape = Annotated[list[Annotated[int, Field(ge=1, lt=1 << 31)]], Field(max_length=8)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True)


class _File(_Form):
    sha256: Sha256
    bytes: Count


class _Backend(_Form):
    name: str
    version: str


class Manifest(_Form):
    """What every manifest of this schema has; keys beside these are left alone."""

    kdcompile_version: Text
    name: Text
    target: Text
    task: Text
    classes: list[str] | None = None
    verdict: Text
    exit_code: Annotated[int, Field(ge=0, le=5)]
    precision: Text
    model: Text
    engine: Text | None = None
    preprocess: Text
    backend: _Backend
    evidence: dict[str, str]
    files: dict[str, _File]
    spec: Sha256 | None = None  # of a bundle that was installed: which spec's it is
    resigned_unverified: bool = False  # signed anew at some time though no key vouched for it


class Preprocess(_Form):
    """`preprocess.json`: channels, their mean and deviation, the sizes in pixels, the padding."""

    channels: Literal[1, 3]
    mean: list[Finite]
    std: list[Positive]
    min_hw: Annotated[Sides, Field(strict=False)]
    max_hw: Annotated[Sides, Field(strict=False)]
    padding: Literal["mean", "mirror"] = "mean"
    in_graph: bool = False

    @validator(mode="after")
    def _agrees(self) -> "Preprocess":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std are not of {self.channels} channels")
        if any(low > high for low, high in zip(self.min_hw, self.max_hw, strict=True)):
            raise ValueError("min_hw is more than max_hw")
        if math.prod(self.max_hw) > MOST_PIXELS:
            raise ValueError(f"max_hw is over {MOST_PIXELS} pixels")
        return self


class _Port(_Form):
    name: Text
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=8)]
    dtype: Literal["float32", "float16", "int64", "int32", "uint8", "int8", "bool"]


class RowPreprocess(_Form):
    """`preprocess.json` of a network of named tensors, or of photos as one of them."""

    inputs: Annotated[list[_Port], Field(min_length=1, max_length=64)]
    image: Preprocess | None = None

    @validator(mode="after")
    def _is_small(self) -> "RowPreprocess":
        if sum(math.prod(port.shape) for port in self.inputs) > MOST_PIXELS:
            raise ValueError(f"its inputs are over {MOST_PIXELS} values")
        return self


class _Parity(_Form):
    min_sqnr_db: Finite


class Gates(_Form):
    """What is read here of a `gates.json`."""

    parity: _Parity


class Tiles(_Form):
    """`tiles.json`: pixels, or why there are no tiles."""

    refused: Text | None = None
    cell: Annotated[int, Field(ge=1, le=MOST_PIXELS)] = 1
    margin: Annotated[int, Field(ge=0, le=MOST_PIXELS)] = 0
    period: Annotated[int, Field(ge=1, le=MOST_PIXELS)] = 1


class Kit(_Form):
    """What is read here of a `kit.json`: the least, usual and largest shape of the input."""

    profile: Annotated[list[Shape], Field(min_length=3, max_length=3)]


class MergedKit(Kit):
    """What a merge reads of a `kit.json`: also its files and the board that it is for."""

    files: dict[str, Sha256]
    target: dict[str, str | Finite | None]


def created() -> str:
    """Now in UTC, or the moment that SOURCE_DATE_EPOCH names, for builds that repeat exactly.

    Raises:
        KDError: `epoch-invalid`.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise KDError(
            "epoch-invalid",
            f"SOURCE_DATE_EPOCH={epoch} is not a time in seconds since 1970",
            where="the environment",
            fix="unset SOURCE_DATE_EPOCH, or set it to $(git log -1 --format=%ct)",
        ) from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """A manifest's values with the schema, and the digest over all others."""
    whole = {**values, "schema": SCHEMA}
    return whole | {DIGEST: digest(whole)}


def check_manifest(values: dict[str, Any]) -> None:
    """Hold a manifest of this schema against its form and its digest.

    Raises:
        ValueError: it is not as a build wrote it.
    """
    hold(Manifest, values)
    names: dict[str, str] = {}
    for name in values["files"]:
        if not is_inside(name) or name.casefold() in UNLISTED:
            raise ValueError(f"it names {name!r}, which is not in the bundle")
        other = names.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise ValueError(f"{other!r} and {name!r} are one file where case does not count")
    for key in ("model", "preprocess", "engine"):
        if values.get(key) is not None and values[key] not in values["files"]:
            raise ValueError(f"its {key}, {values[key]!r}, is not listed")
    if digest({key: value for key, value in values.items() if key != DIGEST}) != values.get(DIGEST):
        raise ValueError("its digest is not that of its other values")


def is_inside(name: str) -> bool:
    """Whether a file of this name lies in the bundle's folder on every file system."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and path.as_posix() == name
        and name.isprintable()
        and not set(name) & set(RESERVED)
        and not any(part == ".." or part[-1] in ". " for part in path.parts)
    )
