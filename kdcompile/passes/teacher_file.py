"""The teacher's ONNX file at its typical shape, kept in the store for every step that reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto
from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.core.store import Store
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.latency_model.network_cost import Network
from kdcompile.models.blocks import fold
from kdcompile.models.factory import load_teacher
from kdcompile.onnx_graph.opset import EXPORTED_OPSET
from kdcompile.passes.keys import network_key
from kdcompile.targets import Target
from kdcompile.tasks.task import task_of

ENTRY, FILE = "network", "teacher.onnx"
VERSION = 1  # in the key of an installed release; it rises when a release exports otherwise


def teacher_network(spec: Spec, store: Store) -> Network:
    """The teacher, folded and in inference mode, with its file.

    Raises:
        KDError: those of `load_teacher` and of the export.
    """
    module = fold(load_teacher(spec))
    takes_pixels = spec.export.preprocess == "in-graph"
    file = teacher_file(spec, store, module)
    return Network(module, spec.export.profile[1], file, takes_pixels)


def teacher_file(spec: Spec, store: Store, teacher: nn.Module) -> ModelProto:
    """The file at the exporter's own opset, exported where it is not in the store yet.

    Args:
        spec: of the build.
        store: of its artifacts.
        teacher: of `load_teacher`.

    Raises:
        KDError: of the export.
    """
    shape, task = spec.export.profile[1], task_of(spec)
    output = task.output

    def build(folder: Path) -> Mapping[str, Any]:
        onnx_from_module(teacher, folder / FILE, (shape, shape, shape), output=output)
        return {}

    key = network_key(spec, output, task.joins_outputs, store.hasher, __name__, VERSION)
    return onnx.load(store.make(ENTRY, key, build).file(FILE))


def is_kept(spec: Spec, target: Target) -> bool:
    """Whether the kept file is what a target reads: of one shape, at an opset that it knows."""
    low, _, high = spec.export.profile
    return list(low) == list(high) and target.max_opset >= EXPORTED_OPSET
