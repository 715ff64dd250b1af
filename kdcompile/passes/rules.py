"""Hardware rules that a plan meets: what its target would refuse, or do in vain."""

from collections.abc import Mapping

from kdcompile.config.spec import Spec
from kdcompile.core.store import Artifact
from kdcompile.passes.manager import Plan
from kdcompile.targets.limits import Operator
from kdcompile.targets.rules import Asked, Network, Violation, violations

OPERATORS = "operators.json"  # of the search, where it writes its student's


def asked_of(spec: Spec) -> Asked:
    """What a spec asks of the hardware."""
    return Asked(
        precision=spec.quantize.precision,
        dla=spec.compile.dla,
        sparsity=spec.compile.sparsity,
        optimization_level=spec.compile.optimization_level,
        is_dynamic=spec.export.is_dynamic,
    )


def met_by(plan: Plan, network: Network | None = None) -> list[Violation]:
    """The rules that a plan meets; those on operators only where the network is known."""
    return violations(plan.target, asked_of(plan.spec), network)


def student_network(plan: Plan, made: Mapping[str, Artifact], precision: str) -> Network | None:
    """The student's operators: of its exported file, else as the search has them, else None.

    Args:
        plan: for the shape.
        made: the finished artifacts of its build.
        precision: what it is expected to run at.
    """
    if "export" in made:
        import onnx

        from kdcompile.latency_model.kernels import operators_of
        from kdcompile.onnx_graph.opset import opset_of

        model = onnx.load(made["export"].file("student.onnx"))
        operators = operators_of(model, plan.spec.export.profile[1])
        return Network(operators, precision, opset_of(model), model.ir_version)
    if "search" in made and OPERATORS in made["search"].files:
        rows = made["search"].json(OPERATORS)
        return Network([Operator.from_json(row) for row in rows], precision)
    return None
