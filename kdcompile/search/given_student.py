"""The architecture of a student that the spec fixes, and its check against the budget.

It is of another family than the teacher, `timm:NAME` or a factory of the user's, or in a file that
an earlier training wrote. A budget of width asks of another family for a share of the teacher's
parameters, since the two have no widths in common.
"""

import math
from typing import Any

from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.readers import parse_json
from kdcompile.latency_model.network_cost import Network
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.models.timm_network import TIMM, timm_arguments
from kdcompile.models.weights import read_weights
from kdcompile.search.pareto import Point, keeps, reachable


def given_architecture(spec: Spec, teacher: Network) -> dict[str, Any]:
    """The architecture that a spec fixes.

    Raises:
        KDError: `weights-architecture`; those of `timm_arguments`.
    """
    family = spec.student.family
    if spec.student.init != "file" or ":" in family:  # its own, whatever it loads
        own: dict[str, Any] = {"family": family, "width": 1.0, "seed": spec.seed}
        if family.startswith(TIMM):
            outputs = teacher.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
            own["arguments"] = timm_arguments(family, outputs, teacher.shape)
        return own
    return _of_file(spec, teacher.module)


def refuse_larger(spec: Spec, student: Point, teacher: Point) -> None:
    """Refuse a given student that costs more than its budget.

    Args:
        spec: of the build.
        student, teacher: with their predicted latencies.

    Raises:
        KDError: `student-not-smaller`, with what the student needs and a budget that it keeps.
    """
    budget = spec.student.budget
    if budget.width is None or ":" not in spec.student.family:
        is_kept = keeps(budget, student, teacher)
        needs = f"needs {student.ms:.3g} ms and {student.macs:.3g} MACs"
        nearest = reachable(budget, teacher.ms / student.ms, student.ms, student.macs)
    else:
        share = student.params / teacher.params
        is_kept = budget.width == 1 or share <= budget.width
        needs = f"has {student.params} parameters, {share:.3g} of the teacher's {teacher.params}"
        nearest = f"budget = {{ macs = {student.macs} }}"
        if share < 1:
            nearest = f"budget = {{ width = {math.ceil(1e4 * share) / 1e4:g} }}"
    if not is_kept:
        raise KDError(
            "student-not-smaller",
            f"the given student {needs}",
            where="[student] budget",
            fix=f"set {nearest} or weaker, or give a smaller student",
        )


def _of_file(spec: Spec, teacher: nn.Module) -> dict[str, Any]:
    assert spec.student.weights is not None, "the schema ties init and weights"
    _, metadata = read_weights(spec.student.weights)
    if "architecture" not in metadata:
        raise _unknown_architecture(spec, "do not name their architecture")
    try:
        found: dict[str, Any] = parse_json(metadata["architecture"])
        student_from_architecture(teacher, found, spec.folder)
    except KDError:
        raise
    except Exception as error:  # by what was written there, or is not so in this teacher
        reason = f"{type(error).__name__}: {error}"
        raise _unknown_architecture(
            spec, f"name an architecture that this teacher has not ({reason})"
        ) from error
    return found


def _unknown_architecture(spec: Spec, problem: str) -> KDError:
    return KDError(
        "weights-architecture",
        f"the student's weights {problem}",
        where=str(spec.student.weights),
        fix="use a student.safetensors that kdcompile distill wrote for this teacher",
    )
