"""Names of an imported network's modules: those that its layers had before they were exported."""

import ast
import keyword
import re

from onnx import NodeProto
from torch import nn

from kdcompile.onnx_graph.opset import SCOPE

LEAVES = (".weight", "_weights", ".w_0", ".weight_ih_l0")  # of a layer's first weights


def module_name(proto: NodeProto, weights: str) -> str:
    """By its weights, by the scopes that an exporter noted, by its own name, or by its operator."""
    for leaf in LEAVES:
        if weights.endswith(leaf) and len(weights) > len(leaf):
            return _clean(weights.removesuffix(leaf))
    for prop in proto.metadata_props:
        if prop.key == SCOPE and (scopes := ast.literal_eval(prop.value))[:-1] and scopes[-2]:
            return _clean(str(scopes[-2]))
    path = proto.name.strip("/").split("/")
    if proto.name.startswith("/") and len(path) > 1:
        return _clean(".".join(_without_owners(path[:-1])))
    return _clean((proto.name or proto.op_type).replace(".", "_").lower())


def _without_owners(path: list[str]) -> list[str]:
    """`blocks`, `blocks.0` as `blocks.0`: torch's older exporter repeats a list's name."""
    found: list[str] = []
    for part in path:
        if found and part.startswith(f"{found[-1]}."):
            found[-1] = part
        else:
            found.append(part)
    return found


def identifier(name: str) -> str:
    """A name that Python takes as a variable's."""
    found = re.sub(r"\W+", "_", name).strip("_") or "tensor"
    return f"x_{found}" if found[0].isdigit() or keyword.iskeyword(found) else found


def _clean(path: str) -> str:
    parts = (re.sub(r"\W+", "_", part).strip("_") for part in path.split("."))
    return ".".join(part for part in parts if part) or "layer"


def place(root: nn.Module, path: str, module: nn.Module) -> str:
    """Add a module at a free path, which is changed where another one is there or above it."""
    parts = path.split(".")
    owner = root
    for depth, part in enumerate(parts[:-1]):
        inner = owner._modules.get(part)
        if inner is None and not hasattr(owner, part):
            inner = nn.Module()
            owner.add_module(part, inner)
        if type(inner) is not nn.Module:  # a layer: nothing is put inside of it
            return place(root, ".".join([*parts[:depth], "_".join(parts[depth:])]), module)
        owner = inner
    leaf, number = parts[-1], 0
    while hasattr(owner, leaf):
        number += 1
        leaf = f"{parts[-1]}_{number}"
    owner.add_module(leaf, module)
    return ".".join([*parts[:-1], leaf])
