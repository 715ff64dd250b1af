"""Networks that a Python caller passes as objects: a spec names each as a factory of this module.

The factory's name holds a hash of the architecture, and the weights are written as safetensors, so
that stages and cache keys treat an object as they treat code and a file. The object itself stays in
this process: in another one the factory is missing, and its error says what to do.
"""

import copy
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcompile.core.content import Seen, described
from kdcompile.core.errors import KDError
from kdcompile.core.store import digest
from kdcompile.core.user_code import users_code
from kdcompile.models.factory import write_weights
from kdcompile.models.weights import SAFETENSORS

NAME = re.compile(r"\w+_[0-9a-f]{16}")
_networks: dict[str, nn.Module] = {}


def register(network: nn.Module, version: str) -> str:
    """The factory that returns copies of a network as it is now, by its name in a spec.

    Args:
        network: moved nowhere and not changed; a copy is kept.
        version: the caller's own part of the name, for what the architecture's hash cannot see.

    Raises:
        KDError: `object-refused`.
    """
    with _of(network, "copied and described"):
        kept = copy.deepcopy(network).cpu().eval()
        key = digest([described(version), _architecture(kept)])[:16]
    name = f"{type(network).__name__}_{key}"
    _networks[name] = kept
    return f"{__name__}:{name}"


def written(network: nn.Module, folder: Path) -> Path:
    """The network's weights as a safetensors file in `folder`, named by their content.

    Raises:
        KDError: `object-refused`.
        OSError: the file cannot be written.
    """
    with _of(network, "written"):
        state = network.state_dict()
        path = folder / f"weights-{digest(described(state))[:16]}{SAFETENSORS}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(path, state)
    return path


def _of(network: nn.Module, what: str) -> AbstractContextManager[None]:
    return users_code(
        "object-refused",
        f"the network cannot be {what}",
        type(network).__name__,
        "initialise its weights, and detach or remove tensors and objects that it keeps as "
        "attributes; or name its factory and file in a spec",
    )


def _architecture(network: nn.Module) -> list[Any]:
    """Everything of a network but the values of its weights: code, attributes, shapes."""
    weights = {name: [list(t.shape), str(t.dtype)] for name, t in network.state_dict().items()}
    seen: Seen = {}
    parts: list[Any] = [str(network), weights]
    for name, module in network.named_modules():
        own = {
            n: value for n, value in vars(module).items() if n not in ("_parameters", "_modules")
        }
        # hooks are kept by numbers that count the hooks of the whole process
        own = {n: list(v.values()) if "hooks" in n and v else v for n, v in own.items()}
        buffers = own.pop("_buffers", {})
        loose = own.pop("_non_persistent_buffers_set", ())
        own |= {key: value for key, value in buffers.items() if key in loose}
        parts.append([name, described(type(module), seen), described(own, seen)])
        if isinstance(module, torch.jit.ScriptModule):
            parts.append(str(module.inlined_graph))
    return parts


def __getattr__(name: str) -> Callable[[], nn.Module]:
    if name in _networks:
        return lambda: copy.deepcopy(_networks[name])
    if NAME.fullmatch(name) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise KDError(
        "object-missing",
        f"the network {name} was passed as a Python object, which no other process has",
        where=f"{__name__}:{name}",
        fix="run the Python code that passes it to kdcompile again; finished stages are kept",
    )
