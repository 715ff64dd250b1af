"""A kernel of a teacher, and what it is where its channels are fewer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kdcompile.latency_model.kernels import Kernel, Kind
from kdcompile.models.channels import Layer
from kdcompile.search.spaces.tensor_channels import Span


@dataclass(frozen=True)
class Part:
    """A kernel of the teacher, with the channels of everything in it."""

    kernel: Kernel
    reads: tuple[tuple[str, int, Span], ...]  # tensor, bytes a channel
    writes: tuple[tuple[str, int, Span], ...]
    ends: tuple[Span, Span]  # the core's input and output
    layer: Layer | None
    product: int  # out * in / groups of the layer
    held: int  # bytes of weight for each unit of that product
    bias: int  # bytes of one output's bias
    constants: tuple[tuple[int, Span], ...]  # bytes a channel, where there is no layer

    def at(self, widths: Mapping[int, int]) -> Kernel:
        """The kernel where groups have these widths."""
        kernel = self.kernel
        inner, outer = (end.width(widths) for end in self.ends)
        first = self.writes[0][2]
        shape = kernel.shape
        if first.free:
            shape = (shape[0], first.width(widths), *shape[2:])
        groups, macs, kind = kernel.groups, kernel.macs, kernel.kind
        if self.layer is not None:
            if self.layer.groups > 1:
                groups = inner if self.layer.inputs == self.layer.outputs else groups
                kind = _kind(kernel, groups, inner)
            product = outer * inner // groups
            macs = macs // self.product * product
            weight = self.held * product + self.bias * outer
        else:
            weight = sum(each * of.width(widths) for each, of in self.constants)
        return replace(
            kernel,
            kind=kind,
            macs=macs,
            reads={name: each * of.width(widths) for name, each, of in self.reads},
            writes={name: each * of.width(widths) for name, each, of in self.writes},
            weight_bytes=weight,
            shape=shape,
            in_channels=inner,
            out_channels=outer,
            groups=groups,
        )


def _kind(kernel: Kernel, groups: int, inner: int) -> Kind:
    if kernel.kind not in ("depthwise", "grouped"):
        return kernel.kind
    if groups > 1:
        return "depthwise" if groups == inner else "grouped"
    return "dilated" if any(d > 1 for d in kernel.dilation) else "conv"
