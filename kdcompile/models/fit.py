"""Check that the tensors of a weight file fit a network."""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdcompile.core.errors import KDError

SHOWN = 3
COUNTER = "num_batches_tracked"  # of a batch norm
WRAPPERS = r"((module|model|net|_orig_mod)\.)+"  # of DDP, Lightning and torch.compile
log = logging.getLogger("kdcompile")
State = Mapping[str, Tensor]


def check_fit(own: State, state: State, path: Path) -> None:
    """Refuse tensors that a network cannot take as they are.

    Args:
        own: the network's tensors by name.
        state: the file's.
        path: the file.

    Raises:
        KDError: `weights-mismatch` with the first tensors that differ, or the prefix by which all
            names do; `weights-dtype` or `weights-nonfinite`.
    """
    _check_prefix(own, state, path)
    problems = [f"{n} is absent from the file" for n in own if n not in state]
    problems += [f"{n} is not in the model" for n in state if n not in own]
    problems += [
        f"{n} is {tuple(state[n].shape)}, the model has {tuple(t.shape)}"
        for n, t in own.items()
        if n in state and state[n].shape != t.shape
    ]
    if problems:
        raise KDError(
            "weights-mismatch",
            _first(problems),
            where=str(path),
            fix="name the factory that these weights were trained with",
        )
    _check_values(own, state, path)


def check_form(state: State, path: Path) -> None:
    """Refuse tensors that are not all of their values, one after the other, in real numbers.

    Raises:
        KDError: `weights-form`, with the first such tensor; `weights-dtype`, a complex one.
    """
    for name, tensor in state.items():
        form = _form(tensor)
        if form:
            raise KDError(
                "weights-form",
                f"{name} is {form}",
                where=str(path),
                fix="save the weights of the network as it was trained, each a dense tensor of its "
                "own (t.detach().clone()), in a new file",
            )
        if tensor.is_complex():
            raise KDError(
                "weights-dtype",
                f"{name} is {_type(tensor)}; only real numbers are exported and delivered",
                where=str(path),
                fix="train a network of real numbers: (real, imaginary) as channels",
            )


def _form(tensor: Tensor) -> str:
    """What keeps a tensor from being plain; empty for one that is."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_meta:
        return "on the device meta, without values"
    if tensor.is_quantized:
        return f"quantised ({_type(tensor)})"
    requested, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if requested > held:
        return f"an expanded tensor: {requested} bytes, of which the file has {held}"
    return ""


def without_prefix(own: State, state: State, path: Path | None = None) -> dict[str, Tensor]:
    """The file's tensors by the network's names, without a usual wrapper's prefix where that fits.

    What else a wrapper holds (a loss, a metric) is left out.

    Args:
        own: the network's tensors by name.
        state: the file's.
        path: the file; None leaves out the line in the log.
    """
    starts = (n.removesuffix(first) for first in [next(iter(own), "")] for n in state
              if first and n.endswith(f".{first}"))  # fmt: skip
    fits = (p for p in starts if re.fullmatch(WRAPPERS, p) and all(p + n in state for n in own))
    prefix = next(fits, "")
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    if not prefix or set(inside) != set(own):
        return dict(state)
    if path is not None:
        others = len(state) - len(inside)
        more = f", and {others} other tensors too" if others else ""
        what = "the network's names start" if others else "every name starts"
        log.info("%s: %s with %r, which is left out%s", path.name, what, prefix, more)
    return inside


def classes_of(own: State, state: State) -> int | None:
    """How many classes the file's network has, where that alone is other than the network's.

    Args:
        own: the network's tensors by name.
        state: the file's, by the same names.
    """
    if set(own) != set(state):
        return None
    other = [(own[n].shape, state[n].shape) for n in own if own[n].shape != state[n].shape]
    rows = {(a[:1], b[:1]) for a, b in other}
    if len(rows) == 1 and all(a[1:] == b[1:] for a, b in other):
        return int(other[0][1][0])
    return None


def save_alone(path: Path, what: str = "model.state_dict()") -> str:
    """How to write tensors alone, to a name that no file next to this one has."""
    number, name = 1, f"{path.stem}-weights.pt"
    while path.with_name(name).exists():
        number += 1
        name = f"{path.stem}-weights-{number}.pt"
    return f"torch.save({what}, {name!r})"


def with_new_classes(own: State, state: State, classes: tuple[int, int]) -> dict[str, Tensor]:
    """The file's tensors, those of its classes filled up with the network's own rows of new ones.

    Args:
        own: the network's tensors by name.
        state: the file's.
        classes: how many rows such a tensor has in the file, and in the network.
    """
    old, new = classes
    found = dict(state)
    for name, tensor in own.items():
        shapes = state[name].shape if name in state else None, tensor.shape
        if old < new and shapes == ((old, *tensor.shape[1:]), (new, *tensor.shape[1:])):
            found[name] = torch.cat([state[name], tensor[old:].to(state[name])])
    return found


def integer_counters(state: State) -> dict[str, Tensor]:
    """The file's tensors, batch norms' counters as integers.

    Halving every tensor of a state_dict halves the counters too; past 65,504 they are infinite
    there, and read as that number.
    """
    return {
        name: tensor.nan_to_num().long()
        if name.endswith(COUNTER) and tensor.is_floating_point()
        else tensor
        for name, tensor in state.items()
    }


def _check_prefix(own: State, state: State, path: Path) -> None:
    """A wrapper (`module.`, `_orig_mod.`, an attribute) on one side alone."""
    prefix = _prefix(inner=own, outer=state)
    if prefix:
        raise KDError(
            "weights-mismatch",
            f"every name in the file starts with {prefix!r}, and no name of the model does",
            where=str(path),
            fix=f"save the network inside: {save_alone(path, f'model.{prefix}state_dict()')}",
        )
    prefix = _prefix(inner=state, outer=own)
    if prefix:
        raise KDError(
            "weights-mismatch",
            f"every name of the model starts with {prefix!r}, and no name in the file does",
            where=str(path),
            fix=f"let the factory return the network inside, {prefix.rstrip('.')!r}, or save the "
            "state_dict of the whole model",
        )


def _prefix(inner: Iterable[str], outer: Iterable[str]) -> str:
    """What all outer names have before the inner ones; empty where they differ otherwise."""
    names = set(outer)
    first = next(iter(inner), None)
    if first is None:
        return ""
    starts = (name.removesuffix(first) for name in names if name.endswith(f".{first}"))
    return next((start for start in starts if {start + name for name in inner} == names), "")


def _check_values(own: State, state: State, path: Path) -> None:
    kinds = [
        f"{n} is {_type(state[n])}, the model has {_type(t)}"
        for n, t in own.items()
        if _kind(state[n]) != _kind(t)
    ]
    if kinds:
        raise KDError(
            "weights-dtype",
            _first(kinds),
            where=str(path),
            fix="save the network as it was trained, before it was quantised or converted",
        )
    for name, tensor in own.items():
        if tensor.is_floating_point() and tensor.numel():
            # as the network will hold it: a large float64 is infinite in float32
            ends = torch.stack(state[name].to(tensor.dtype).aminmax())  # NaN where there is one
            if not ends.isfinite().all():
                raise nonfinite(name, path)


def nonfinite(name: str, path: Path) -> KDError:
    """The refusal of a tensor that is not a number everywhere."""
    return KDError(
        "weights-nonfinite",
        f"{name} holds NaN or infinity",
        where=str(path),
        fix="use a checkpoint from before the training diverged",
    )


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "float"
    if tensor.is_complex():
        return "complex"
    return "truth" if tensor.dtype == torch.bool else "integer"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first(problems: list[str]) -> str:
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more
