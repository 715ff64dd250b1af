"""Can this many test photos decide a gate at all? By the gates' own rules, before anything runs.

They are asked about the pair that is easiest to judge: a student and a teacher (or an earlier
network) that are never wrong. Where such a student does not pass, none does that comes out as its
teacher on every photo.
"""

from collections.abc import Callable, Sequence

from kdcompile.config.gates import Gates
from kdcompile.core.report import Verdict
from kdcompile.gates.context import Floats
from kdcompile.gates.registry import Decidable, find_gate
from kdcompile.stats.sample_size import least_number
from kdcompile.tasks.task import Task


def decidable(
    gates: Gates, task: Task, true: Floats, classes: Sequence[str] | None, seed: int
) -> list[Decidable]:
    """Every gate of the spec that is judged from test photos, in the spec's order.

    Args:
        gates: of the spec.
        task: what is predicted.
        true: the annotated values of the photos that would be judged, [N].
        classes: the names that the data has for them.
        seed: of the resampling.
    """
    named = gates.with_metric(task.metric.name).named()
    rules = [(find_gate(name).easiest, settings) for name, settings in named.items()]
    return [rule(settings, task, true, classes, seed) for rule, settings in rules if rule]


def of_all(name: str, images: int, rule: Callable[[int], tuple[Verdict, str]]) -> Decidable:
    """Of a gate that is decided on all photos together.

    Args:
        name: of the gate.
        images: photos that there are.
        rule: the verdict, and why, on so many photos on which no network is wrong.
    """
    verdict, why = rule(images)
    needed = least_number(lambda n: rule(n)[0] == "passed")
    return Decidable(name, images, verdict == "passed", why, needed)
