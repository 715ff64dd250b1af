"""The form that a build's networks are deployed in: as exported, or with the preprocessing inside.

Calibration, training and search work on the exported float network; what is built, timed, judged
and shipped, teacher and student alike, has this form.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcompile.config.deploy import Profile
from kdcompile.core.files import file_sha256, scratch
from kdcompile.data.preprocess import Input, Preprocess


@dataclass(frozen=True)
class DeployedForm:
    """How exported files and inputs become those that are deployed.

    Args:
        prepare: the preprocessing of the deployed network.
        folder: where rewritten files lie, for as long as they are used.
    """

    prepare: Preprocess
    folder: Path

    def file(self, exported: Path) -> Path:
        """The deployed file of an exported one; itself where nothing changes."""
        if not self.prepare.in_graph:
            return exported
        # its stem names engines, its content tells it from another stage's file of that name
        made = self.folder / file_sha256(exported)[:16] / exported.name
        if not made.exists():
            import onnx  # gates come by here, and a cached build loads no heavy library

            from kdcompile.onnx_graph.in_graph import in_graph

            made.parent.mkdir(exist_ok=True)
            model = onnx.load(exported)
            onnx.save(in_graph(model, self.prepare.mean, self.prepare.std), made)
        return made

    def profile(self, exported: Profile) -> Profile:
        """Smallest, typical and largest shape of the deployed network's input."""
        low, typical, high = (self.prepare.input_shape(shape) for shape in exported)
        return low, typical, high

    def blank(self, shape: Sequence[int]) -> Input:
        """Zeros as an input, where the exported network's is of `shape`."""
        kind = np.uint8 if self.prepare.in_graph else np.float32
        return np.zeros(self.prepare.input_shape(shape), kind)


@contextmanager
def deployed_form(exported: Preprocess, where: str) -> Iterator[DeployedForm]:
    """The form of a build.

    Args:
        exported: the preprocessing of the exported networks.
        where: `export.preprocess`.
    """
    with scratch() as folder:
        yield DeployedForm(exported.deployed(where), Path(folder))
