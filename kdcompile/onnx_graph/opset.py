"""Convert a network to the opset and IR version that a target reads, keeping its scopes."""

import re

import onnx
from onnx import ModelProto, helper, version_converter

from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.graph import copied
from kdcompile.onnx_graph.norms import LAYER_NORM_SINCE, write_out_layer_norms
from kdcompile.onnx_graph.shapes import without_weights

EXPORTED_OPSET = 18  # the oldest that torch's exporter writes by itself
SCOPE = "pkg.torch.onnx.name_scopes"  # of a node: the modules around it, the innermost last
SCOPE_KEYS = (SCOPE, "namespace")
HIDDEN = "unconverted"


def at_opset(model: ModelProto, max_opset: int, ir_version: int) -> ModelProto:
    """The model within an opset and IR version, converted only if it is newer.

    Raises:
        KDError: `export-opset`: an operator has no older form, or is not ONNX's own.
    """
    if opset_of(model) > max_opset:
        newest = copied(model)
        _hide_pads(newest)
        try:
            converted = version_converter.convert_version(newest, max(max_opset, LAYER_NORM_SINCE))
            if max_opset < LAYER_NORM_SINCE:
                write_out_layer_norms(converted)
                converted = version_converter.convert_version(converted, max_opset)
        except (RuntimeError, version_converter.ConvertError) as error:
            raise _refused(model, max_opset, str(error)) from error
        _drop_newer_defaults(converted)
        _show_pads(converted)
        model = converted
    model.ir_version = min(model.ir_version, ir_version)
    _verify(model, max_opset, ir_version)
    return model


def _hide_pads(model: ModelProto) -> None:
    """Move, in place, the Pad nodes of opset 13's form to a domain that is not converted.

    Later forms add axes and a mode; onnx's converter knows no way back from any of them.
    """
    for node in model.graph.node:
        modes = [a.s for a in node.attribute if a.name == "mode"]
        if node.op_type == "Pad" and len(node.input) < 4 and modes != [b"wrap"]:
            node.domain = HIDDEN
    model.opset_import.append(helper.make_opsetid(HIDDEN, 1))


def _show_pads(model: ModelProto) -> None:
    for node in model.graph.node:
        if node.domain == HIDDEN:
            node.domain = ""
    for opset in [o for o in model.opset_import if o.domain == HIDDEN]:
        model.opset_import.remove(opset)


def _drop_newer_defaults(model: ModelProto) -> None:
    """Remove what onnx's converter leaves: an attribute that opset 18 brought, at its default."""
    for node in model.graph.node:
        for attribute in list(node.attribute):
            if attribute.name == "noop_with_empty_axes" and attribute.i == 0:
                node.attribute.remove(attribute)


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators that the model asks for."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _verify(model: ModelProto, max_opset: int, ir_version: int) -> None:
    foreign = sorted({o.domain for o in model.opset_import if o.domain not in ("", "ai.onnx")})
    foreign += sorted({n.domain for n in model.graph.node if n.domain not in ("", "ai.onnx")})
    if foreign or model.functions:
        raise KDError(
            "export-opset",
            f"the network needs operators of {foreign[0] if foreign else 'its own functions'}, "
            "which are not ONNX's",
            where=", ".join(n.op_type for n in model.graph.node if n.domain in foreign),
            fix="write the module in standard operators",
        )
    if not 0 < opset_of(model) <= max_opset or model.ir_version > ir_version:
        raise KDError(
            "export-opset",
            f"the file has opset {opset_of(model)} and IR {model.ir_version}; the target reads "
            f"opset {max_opset} and IR {ir_version}",
            fix="upgrade onnx: its version converter is at fault",
        )
    try:
        check(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise KDError(
            "export-opset",
            f"the file is not valid ONNX of opset {opset_of(model)}: {str(error).splitlines()[0]}",
            fix="upgrade onnx, or replace the operator that is named",
        ) from error


def check(model: ModelProto) -> None:
    """onnx's own check of a file; the values of its weights, which cannot be wrong, are left out.

    Raises:
        onnx.checker.ValidationError: it is not valid ONNX.
        onnx.shape_inference.InferenceError: its shapes contradict each other.
    """
    onnx.checker.check_model(without_weights(model, as_inputs=True), full_check=True)


def _refused(model: ModelProto, max_opset: int, text: str) -> KDError:
    """Names the operators that the converter's message mentions, with their modules."""
    reason = re.sub(r"^.*failed: ", "", " ".join(text.split()))
    guilty = [n for n in model.graph.node if re.search(rf"\b{n.op_type}\b", reason)]
    places = []
    for node in guilty:
        meta = {p.key: p.value for p in node.metadata_props}
        scope = next((meta[key] for key in SCOPE_KEYS if key in meta), "")
        places.append(f"{node.op_type} {node.name} {scope}".strip())
    names = sorted({n.op_type for n in guilty})
    return KDError(
        "export-opset",
        f"{', '.join(names) or 'an operator'} has no form in opset {max_opset}: {reason}",
        where="; ".join(places[:3]),
        fix="replace that module, or choose a target with a newer TensorRT",
    )


def restore_scopes(model: ModelProto, exported: ModelProto) -> None:
    """Put back, in place, what ONNX's version converter and the simplifier drop.

    A node is known again by the name of its first output, which both keep.

    Args:
        model: what they made.
        exported: the exporter's own model.
    """
    scopes = {
        node.output[0]: entry.value
        for node in exported.graph.node
        for entry in node.metadata_props
        if entry.key == SCOPE
    }
    for node in model.graph.node:
        known = any(entry.key == SCOPE for entry in node.metadata_props)
        if not known and node.output[0] in scopes:
            node.metadata_props.add(key=SCOPE, value=scopes[node.output[0]])
