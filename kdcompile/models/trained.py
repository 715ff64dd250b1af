"""The trained student as a module, rebuilt from its artifact."""

from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.core.store import Artifact
from kdcompile.models.blocks import fold
from kdcompile.models.factory import load_teacher, load_weights
from kdcompile.models.shrunk import student_from_architecture


def trained(spec: Spec, distilled: Artifact, teacher: nn.Module | None = None) -> nn.Module:
    """The student as it is exported: trained, folded, in inference mode.

    Args:
        spec: of the build.
        distilled: artifact of stage `distill`.
        teacher: the network, where it is loaded already.
    """
    architecture = distilled.json("architecture.json")
    of = load_teacher(spec) if teacher is None else teacher
    student = student_from_architecture(of, architecture, spec.folder)
    load_weights(student, distilled.file("student.safetensors"))
    return fold(student.float().eval())
