"""Outputs of a bundle's network for samples of named tensors, each in a file."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from kdcompile.bundle.run import BundleRun, Row
from kdcompile.bundle.samples import network_io
from kdcompile.core.arrays import read_arrays
from kdcompile.core.errors import KDError
from kdcompile.core.ports import Port, Ports
from kdcompile.data.photo import read_pixels
from kdcompile.data.preprocess import RowPreprocess


class TensorRun(BundleRun):
    """A bundle's network on `.npz` files of its inputs, or on photos, where it takes one."""

    outputs: Ports = Ports(())  # of the network

    def row(self, photo: Path) -> Row:
        """{"photo", "outputs": shapes by name, "file": where the outputs are}."""
        prepare = self.preprocess
        assert self.out is not None, "its outputs are written"
        if not isinstance(prepare, RowPreprocess):  # a task of the user's, on photos
            found, _, _ = self._run(read_pixels(photo, prepare.channels))
            outputs = {self.outputs.ports[0].name: found}
        else:
            if prepare.image is None:
                given = prepare.ports.pack(_tensors(photo), str(photo))
            else:
                given = prepare(read_pixels(photo, prepare.channels))
            found = self.runner(given)
            outputs = self.outputs.unpack(found)
        self.check(found)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **outputs)
        path = self.write(self.out, photo.stem, "_outputs.npz", content.getvalue())
        shapes = {name: list(array.shape) for name, array in outputs.items()}
        return {"photo": str(photo), "outputs": shapes, "file": str(path)}


def output_ports(model: Path) -> Ports:
    """The outputs of an ONNX file."""
    return Ports(tuple(Port(one.name, one.dims, "float32") for one in network_io(model)[1]))


def _tensors(path: Path) -> dict[str, Any]:
    """The arrays of a file.

    Raises:
        KDError: `sample-unreadable`.
    """
    try:
        return read_arrays(path)
    except (OSError, ValueError, MemoryError) as error:
        raise KDError(
            "sample-unreadable",
            f"the file cannot be read as arrays: {error}",
            where=str(path),
            fix="give an .npz file with an array for each input of the network, by its name",
        ) from error
