"""`kdcompile search --explain`: modules that keep the teacher's width in every student, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.models.channel_groups import Channels, length
from kdcompile.models.channels import trace
from kdcompile.models.factory import load_teacher
from kdcompile.models.resize import module_widths, plain_kind

HEADS = ("module", "channels", "reason")


def explain(spec: Spec) -> dict[str, Any]:
    """The table as JSON values: `frozen`, what `frozen` gives, of so many `modules`.

    The teacher is traced; nothing is exported, trained or kept.

    Raises:
        KDError: those of loading and tracing the teacher.
    """
    teacher = load_teacher(spec)
    channels = trace(teacher, spec.export.profile[1])
    modules = len(channels.layers) + len(channels.fixed)
    return {"frozen": frozen(teacher, channels), "modules": modules}


def frozen(teacher: nn.Module, channels: Channels) -> list[dict[str, Any]]:
    """Rows of `module`, `channels` that no student has fewer of (0: not known), and `reason`."""
    rows = []
    for name, why in channels.fixed.items():
        module = teacher.get_submodule(name)
        width = module_widths(module)[1] if plain_kind(module) else 0
        rows.append({"module": name, "channels": width, "reason": why})
    for name, layer in channels.layers.items():
        held = tuple(run for run in layer.outputs if channels.root(run[0]) in channels.frozen)
        if held:
            why = channels.why[channels.root(held[0][0])]
            rows.append({"module": name, "channels": length(held), "reason": why})
    return rows


def sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows for `explanation.json`."""
    return [
        f"{row['module']} keeps its {row['channels'] or ''} channels: {row['reason']}".replace(
            "  ", " "
        )
        for row in rows
    ]


def lines(found: Mapping[str, Any]) -> list[str]:
    """The explanation as text."""
    if not found["frozen"]:
        return [f"all of {found['modules']} modules can be made narrower"]
    rows = [HEADS, *([str(row[head] or "") for head in HEADS] for row in found["frozen"])]
    wide = [max(len(row[at]) for row in rows) for at in (0, 1)]
    return [
        f"{len(found['frozen'])} of {found['modules']} modules keep the teacher's width",
        "",
        *(f"{row[0]:<{wide[0]}}  {row[1]:>{wide[1]}}  {row[2]}" for row in rows),
    ]
