"""`LICENCES.md`: under what terms everything stands that built a bundle or runs it."""

from collections.abc import Sequence
from pathlib import Path

from kdcompile.bundle.distributions import UNKNOWN, Used
from kdcompile.core.files import write_text
from kdcompile.core.report import escape

NAME = "LICENCES.md"
OURS = "the files of kdcompile in this bundle: `infer.py`, `agent.pyz`, `cpp/`, `kit/*.py`"
HEAD = """# Licences

What the metadata of each distribution says of itself; nobody has read the texts for this list.
`unknown` means that the metadata name no licence.

| what | licence |
|---|---|
| the network (`model.onnx`, an engine, the networks of `kit/` or `parity/`), the validation \
images beside it | not stated by the spec |
| {ours} | {licence} |
| TensorRT, CUDA and the driver, where the device runs an engine | NVIDIA's, which come with them; \
no file of theirs is in this bundle |

## Python distributions of the build

None of them is in this bundle. `infer.py` needs numpy, onnxruntime and pillow where it runs.

| distribution | version | licence | from |
|---|---|---|---|
"""


def write_licences(folder: Path, packages: Sequence[Used]) -> None:
    """Write the list of `distributions.used()`."""
    write_text(folder / NAME, table(packages))


def table(packages: Sequence[Used]) -> str:
    """The list as Markdown."""
    ours = next((one.licence for one in packages if one.name == "kdcompile"), UNKNOWN)
    rows = [
        f"| {one.name} | {one.version} | {escape(one.licence)} | {one.licence_source or '-'} |"
        for one in packages
    ]
    unknown = [one.name for one in packages if one.licence == UNKNOWN]
    note = f"\nUnknown: {', '.join(unknown)}.\n" if unknown else "\n"
    return HEAD.format(ours=OURS, licence=ours) + "\n".join(rows) + "\n" + note.lstrip("\n")
