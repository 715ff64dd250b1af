"""A narrower student's file that follows from the teacher's is what its own export would be."""

import dataclasses

import pytest
import torch
from droppable_networks import Mobile, ResNet, trained
from torch import nn
from unshrunk_networks import ConvNeXt, Heads, Recurrent, ViT

from kdcompile.latency_model.kernels import kernels_of, operators_of
from kdcompile.latency_model.network_cost import Network
from kdcompile.models.channels import trace
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.onnx_graph.resized import resized
from kdcompile.search.recorded import Narrowed, recorded
from kdcompile.search.spaces.pruned import students

SHAPE = [1, 3, 16, 16]


def _numbers(kernel):
    fields = dataclasses.asdict(kernel)
    for name in ("name", "nodes"):
        del fields[name]
    return fields | {name: list(fields[name].values()) for name in ("reads", "writes")}


def _randomised(network):
    """As after a training: a bias of zeros is left out of a file."""
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(torch.rand_like(tensor))
    return network.eval()


@pytest.mark.parametrize("kind", [ConvNeXt, ViT, Heads, ResNet, Mobile])
def test_is_the_students_own_file_but_for_its_values(kind, tmp_path, monkeypatch):
    torch.manual_seed(0)
    teacher = Network(_randomised(trained(kind())), SHAPE)
    architecture = students(trace(teacher.module, SHAPE), 4, 0, [0.5])[0]
    student = student_from_architecture(teacher.module, architecture, tmp_path).eval()
    student = _randomised(trained(student))
    own = Network(student, SHAPE)
    with monkeypatch.context() as patch:
        patch.setattr("kdcompile.latency_model.network_cost.onnx_from_module", None)
        found = Narrowed(teacher).network(student, architecture)
    assert found.module is student
    for precision in ("fp32", "int8"):
        made = [_numbers(k) for k in kernels_of(found.model, SHAPE, precision)]
        assert made == [_numbers(k) for k in kernels_of(own.model, SHAPE, precision)]
        whole = sum(k.macs for k in kernels_of(teacher.model, SHAPE, precision))
        assert sum(k["macs"] for k in made) < whole
    plain = [
        [dataclasses.replace(one, name="") for one in operators_of(m, SHAPE)]
        for m in (found.model, own.model)
    ]
    assert plain[0] == plain[1]


class Conditional(nn.Module):
    """Its code asks for the width, and runs other operators at another one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 4, 3)

    def forward(self, image):
        x = self.a(image)
        return self.b(x if x.shape[1] == 32 else x.relu()).mean((2, 3))


def test_a_student_that_runs_other_operators_is_exported(tmp_path):
    teacher = Network(Conditional().eval(), SHAPE)
    architecture = students(trace(teacher.module, SHAPE), 4, 0, [0.5])[0]
    student = student_from_architecture(teacher.module, architecture, tmp_path).eval()
    runs = [recorded(one, SHAPE) for one in (teacher.module, student)]
    assert resized(teacher.model, SHAPE, *runs) is None
    found = Narrowed(teacher).network(student, architecture)
    assert [node.op_type for node in found.model.graph.node].count("Relu") == 1


def test_a_network_whose_weights_the_record_has_not_is_not_followed():
    teacher = Network(Recurrent().eval(), SHAPE)
    run = recorded(teacher.module, SHAPE)
    fewer = dataclasses.replace(run, weights=run.weights[1:])
    assert resized(teacher.model, SHAPE, fewer, fewer) is None


def test_a_network_that_does_not_run_on_shapes_alone_has_no_record():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, image):
            return self.a(image) * float(image.sum())

    assert recorded(Reads().eval(), SHAPE) is None
