"""The GPU machine of the battery by its limits, and the calls that carry everything to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MIB = 2**20


@dataclass(frozen=True)
class Machine:
    """A GPU machine without a network, lent for half an hour.

    Each call of a command may carry files there and bring some back. Between calls its disk is
    kept only while it is held.
    """

    python: str = "3.12"
    triton: str = "3.6.0"
    held_minutes: float = 30.0
    call_minutes: float = 9.0  # of 10, so that a command ends by itself
    start_seconds: int = 75  # of a machine, counted among the held minutes
    transfer_seconds: int = 20  # of a call with full room
    carried_bytes: int = 64 * MIB
    files_back: int = 8
    file_bytes: int = 16 * MIB


@dataclass
class Call:
    """One command on the machine, and what travels with it."""

    steps: list[str] = field(default_factory=list)
    seconds: int = 0  # of the steps
    files: list[tuple[str, int]] = field(default_factory=list)  # name and bytes

    @property
    def bytes(self) -> int:
        """Of what it carries, without the tree."""
        return sum(size for _, size in self.files)


def planned(
    steps: Sequence[tuple[str, int, Sequence[str]]],
    parts: Mapping[str, Sequence[tuple[str, int]]],
    base: Sequence[tuple[str, int]],
    tree_bytes: int,
    machine: Machine,
) -> list[Call]:
    """Share the steps out over calls, and the parts over the calls up to the first that needs them.

    Args:
        steps: name, seconds and groups of parts that must be there, the most valuable first.
        parts: files by group, each small enough for a call of its own.
        base: files that every call with a step carries, in case the machine is a fresh one.
        tree_bytes: of the project itself, which travels with every call.
        machine: its limits.

    Raises:
        ValueError: something does not fit into any call.
    """
    calls: list[Call] = []
    limit = int(60 * machine.call_minutes)
    for name, seconds, _ in steps:
        if not calls or calls[-1].seconds + seconds > limit:
            calls.append(Call(files=list(base)))
        calls[-1].steps.append(name)
        calls[-1].seconds += seconds
    room = machine.carried_bytes - tree_bytes
    if any(call.bytes > room for call in calls):
        raise ValueError(f"{sum(s for _, s in base)} bytes of every call exceed the room of {room}")
    for group, files in parts.items():
        needing = {name for name, _, groups in steps if group in groups}
        first = next((c for c in calls if needing & set(c.steps)), None)
        for file in files if first else ():
            _place(calls, first, file, room)
    return calls


def _place(calls: list[Call], before: Call | None, file: tuple[str, int], room: int) -> None:
    """Into the first call with room up to `before`, else into one of its own just before it."""
    assert before is not None
    last = next(i for i, call in enumerate(calls) if call is before)
    if file[1] > room:
        raise ValueError(f"{file[0]} of {file[1]} bytes exceeds the room of {room} a call")
    for call in calls[: last + 1]:
        if call.bytes + file[1] <= room:
            call.files.append(file)
            return
    calls.insert(last, Call(files=[file]))


def text(calls: Sequence[Call], tree_bytes: int, machine: Machine) -> str:
    """The plan as a table, with what is over a limit said."""
    lines = [f"{'call':<6} {'seconds':>7} {'MiB':>6}  steps; files"]
    held = machine.start_seconds
    for number, call in enumerate(calls, 1):
        size = call.bytes + tree_bytes
        held += call.seconds + machine.transfer_seconds
        names = ", ".join(name for name, _ in call.files)
        lines.append(
            f"{number:02d}     {call.seconds:>7} {size / MIB:>6.1f}  "
            f"{', '.join(call.steps) or 'nothing but to bring files'}; {names}"
        )
    lines.append(
        f"{len(calls)} calls, {held / 60:.0f} minutes of {machine.held_minutes:.0f}: a start of "
        f"{machine.start_seconds} s and {machine.transfer_seconds} s a call of transfer among "
        f"them; the tree is {tree_bytes / MIB:.1f} MiB of each"
    )
    return "\n".join(lines)
