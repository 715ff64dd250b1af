"""Rules of `rules.toml`, applied: settings of a build that a target refuses or ignores.

A rule is never the last word: the builder on the device is, and `compile` records what it refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdcompile.targets.limits import DlaLayer, Operator, dla_layers, dla_refusals, padded_macs, tile
from kdcompile.targets.rules_file import Rule, tables
from kdcompile.targets.schema import version

if TYPE_CHECKING:
    from kdcompile.targets import Target

SHOWN = 3  # names in a message
NO_DLA = "dla-cores"  # where it binds, no other rule on a DLA has a meaning


@dataclass(frozen=True)
class Asked:
    """What a spec asks of the hardware.

    `precision` is of `[quantize]`, the next three of `[compile]`; `is_dynamic`: the shapes vary.
    """

    precision: str = "auto"
    dla: int | None = None
    tf32: bool = True
    optimization_level: int | None = None
    is_dynamic: bool = False

    def asks(self, option: str) -> bool:
        """Whether an option of `[compile]` differs from its default; level 0 and core 0 do."""
        return bool(getattr(self, option) != getattr(Asked, option))


@dataclass(frozen=True)
class Network:
    """What is to be built: `precision` is what it is expected to run at."""

    operators: Sequence[Operator]
    precision: str
    opset: int = 0
    ir_version: int = 0


@dataclass(frozen=True)
class Violation:
    """A rule that a build meets: what is refused or wasted there, and what to do."""

    code: str
    effect: str
    message: str
    where: str
    fix: str
    source: str


def limits_of(target: "Target") -> list[Rule]:
    """The rules that bind whatever asks for their precision or option on this target."""
    of_the_spec = {"known", "dla_precisions", "fixed_shape"}
    return [
        rule
        for rule in tables().rules
        if not rule.operators and not of_the_spec & set(rule.needs)
        if rule.option != "dla" or target.dla or rule.code == NO_DLA
        if _absent(rule, target, Asked(dla=0))
    ]


def violations(target: "Target", asked: Asked, network: Network | None = None) -> list[Violation]:
    """Everything that the target would refuse or do in vain, in the order of the rules.

    Args:
        target: with its compute capability, TensorRT and DLAs.
        asked: what the spec asks.
        network: None where it is not known yet; the rules on operators are left out then.
    """
    has_core = asked.dla is not None and asked.dla < target.dla
    found: list[Violation] = []
    for rule in tables().rules:
        about = not rule.option or asked.asks(rule.option)
        moot = rule.option == "dla" and not has_core and rule.code != NO_DLA
        if not about or moot or not _concerns(rule, target, asked):
            continue
        if rule.operators:
            found += [] if network is None else _OF_NETWORK[rule.code](rule, target, network)
        elif absent := _absent(rule, target, asked):
            found.append(_violation(rule, f"{rule.text}; {absent}", _where(rule, asked)))
    refused = [v for v in found if v.where.startswith("[quantize]") and v.effect == "refused"]
    # a precision that a rule of the hardware refuses needs not be refused once more
    return [v for v in found if v.code != "precision-known" or refused == [v]]


def on_dla(target: "Target", asked: Asked, network: Network) -> tuple[DlaLayer, ...] | None:
    """The side that each operator is expected on; None where no DLA is asked or none is to be had.

    A network whose precision or shapes no DLA takes stays on the GPU whole.
    """
    if asked.dla is None:
        return None
    at = replace(asked, precision=network.precision)
    bound = [
        rule
        for rule in tables().rules
        if rule.option == "dla" and not rule.operators
        and _concerns(rule, target, at) and _absent(rule, target, at)
    ]  # fmt: skip
    if any(rule.effect == "refused" for rule in bound):
        return None
    whole = next((rule.text for rule in bound), "")
    return dla_layers(network.operators, target, whole)


def _concerns(rule: Rule, target: "Target", asked: Asked) -> bool:
    if not rule.precisions or asked.precision in rule.precisions:
        return True
    # what auto may choose: a rule that costs speed concerns it, one that refuses only narrows it
    able = any(precision in target.precisions for precision in rule.precisions)
    return asked.precision == "auto" and rule.effect == "wasted" and able


def _absent(rule: Rule, target: "Target", asked: Asked) -> str:
    """What the target or the spec has instead of what a rule needs; empty where all is there."""
    if not rule.needs:
        return f"{asked.precision} is asked"
    absent = _hardware(rule, target, asked) or _software(rule, target)
    if absent:
        return absent
    able = rule.needs.get("dla_precisions")
    if able and asked.precision not in (*able, "auto"):
        return f"{asked.precision} is asked"
    return "the shapes vary" if rule.needs.get("fixed_shape") and asked.is_dynamic else ""


def _hardware(rule: Rule, target: "Target", asked: Asked) -> str:
    needs, capability = rule.needs, target.compute_capability
    judged = None if capability in needs.get("also", ()) else capability
    if judged is not None and version(judged) < version(needs.get("capability", "0")):
        return f"{target.name} has {judged}"
    parts = {"int8", "fp16"} if asked.precision == "mixed" else {asked.precision}
    if needs.get("known") and asked.precision != "auto" and not parts <= set(target.precisions):
        return f"{target.name} has {', '.join(target.precisions)}"
    if needs.get("dla") and asked.dla is not None and asked.dla >= target.dla:
        cores = f"{target.dla} DLA core{'' if target.dla == 1 else 's'}"
        return f"core {asked.dla} is asked, {target.name} has {cores if target.dla else 'no DLA'}"
    return ""


def _software(rule: Rule, target: "Target") -> str:
    """A workstation whose TensorRT is not known yet may have the newest of its range."""
    needs, found = rule.needs, target.software
    least = needs.get("tensorrt")
    if found is None:
        return f"{target.name} runs ONNX Runtime" if least else ""
    newest = version(found.split("..")[-1])
    if least and newest < version(least):
        return f"{target.full_name} has TensorRT {found}"
    for span in needs.get("not_tensorrt", ()):
        low, high = map(version, span.split(".."))
        if low <= newest <= high:
            return f"{target.full_name} has TensorRT {found}"
    return ""


def _where(rule: Rule, asked: Asked) -> str:
    if "fixed_shape" in rule.needs:
        return "[export] shape"
    about_precision = not rule.option or "dla_precisions" in rule.needs
    if about_precision:
        return f"[quantize] precision = {asked.precision}"
    return f"[compile] {rule.option} = {str(getattr(asked, rule.option)).lower()}"


def _violation(rule: Rule, message: str, where: str) -> Violation:
    return Violation(rule.code, rule.effect, message, where, rule.fix, rule.source)


def _named(operators: Sequence[Operator]) -> str:
    names = [operator.name for operator in operators[:SHOWN]]
    more = len(operators) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _on_dla(rule: Rule, target: "Target", network: Network) -> list[Violation]:
    count = len(network.operators)
    return [
        _violation(
            rule, f"{reason}; {len(found)} of {count} operators stay on the GPU", _named(found)
        )
        for reason, found in dla_refusals(network.operators, target).items()
    ]


def _off_tile(rule: Rule, target: "Target", network: Network) -> list[Violation]:
    channels = tile(target, network.precision)
    spent = {o: padded_macs(o, channels) - o.macs for o in network.operators}
    wasted = sum(spent.values())
    share = wasted / (wasted + sum(o.macs for o in network.operators) or 1)
    if share < tables().tiles["least_waste"]:
        return []
    worst = sorted((o for o in spent if spent[o]), key=lambda o: -spent[o])
    sizes = [f"{o.name} {o.in_channels} to {o.out_channels}" for o in worst[:SHOWN]]
    text = f"{rule.text}; {channels} at {network.precision}: {share:.0%} of it is padding"
    return [_violation(rule, f"{text} (most: {', '.join(sizes)})", _named(worst))]


def _beyond_opset(rule: Rule, target: "Target", network: Network) -> list[Violation]:
    if network.opset <= target.max_opset and network.ir_version <= target.ir_version:
        return []
    text = f"it has opset {network.opset} and IR {network.ir_version}, {target.full_name} reads "
    text += f"opset {target.max_opset} and IR {target.ir_version}"
    return [_violation(rule, f"{rule.text}; {text}", "the exported network")]


_OF_NETWORK = {"dla-operator": _on_dla, "channel-tile": _off_tile, "onnx-opset": _beyond_opset}
