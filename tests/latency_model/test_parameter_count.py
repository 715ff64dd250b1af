"""Counting the parameters of a network."""

from kdcompile.latency_model.network_cost import params
from kdcompile.models.csrnet import build


def test_csrnet_has_its_published_number_of_parameters() -> None:
    assert params(build()) == 16_263_489


def test_a_shared_parameter_counts_once() -> None:
    network = build()
    network.output.bias = network.backend[-2].bias
    assert params(network) == 16_263_488
