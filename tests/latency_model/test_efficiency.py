"""The fit finds efficiencies that it was given, and keeps what nothing measured."""

import math
from dataclasses import replace

import numpy as np
import pytest

from kdcompile.core.errors import KDError
from kdcompile.latency_model.parameters import (
    ELSEWHERE,
    PRIORS,
    RESIDUAL,
    Observation,
    efficiencies_of,
    elsewhere,
    fit,
    log_deviation,
    priors,
)
from kdcompile.latency_model.predict import kernel_ms
from kdcompile.latency_model.reference_kernels import reference_kernels
from kdcompile.latency_model.roofline import lay_out, times
from kdcompile.targets import load

AGX = load("jetson-agx-orin-64gb")
CPU = load("cpu")
CSRNETS = [("CSRNet", (1, 3, 576, 768)), ("CSRNet-1/4", (1, 3, 576, 768))]


def observed(truth, target, precision, shuffled=0.0):
    """Latencies that the equations give with known efficiencies, and noise."""
    random = np.random.default_rng(0)
    found = []
    for network, shape in CSRNETS:
        kernels = reference_kernels(network, shape, precision)
        for count in (4, 8, 12, len(kernels)):
            ms = kernel_ms(kernels[:count], target, precision, truth)
            ms *= math.exp(shuffled * random.standard_normal())
            name = f"{network} {count}"
            found.append(Observation(name, name, kernels[:count], target, precision, ms))
    return found


@pytest.mark.parametrize(("target", "precision"), [(AGX, "fp16"), (CPU, "fp32")])
def test_a_fit_predicts_what_it_was_given(target, precision) -> None:
    prior = priors("cpu" if target is CPU else "gpu")
    truth = replace(prior, values={**prior.values, "arithmetic": 0.6, "dram": 0.5})
    seen = observed(truth, target, precision, shuffled=0.02)
    fitted = fit(seen, prior)
    for o in seen:
        assert kernel_ms(o.kernels, target, precision, fitted) == pytest.approx(o.ms, rel=0.1)
        before = kernel_ms(o.kernels, target, precision, prior)
        assert abs(math.log(before / o.ms)) > 0.1
    assert fitted.residual < RESIDUAL
    layout = lay_out(seen[-1].kernels, target)
    assert log_deviation(layout, fitted) < 0.7 * log_deviation(layout, prior)


def test_what_nothing_measured_keeps_its_prior() -> None:
    prior = priors("gpu")
    fitted = fit(observed(prior, AGX, "fp16", shuffled=0.1), prior)
    deviations = dict(zip(fitted.names, np.sqrt(np.diag(fitted.covariance)), strict=True))
    for name in ("attention", "generation.9", "int8.7", "step.10"):
        assert fitted.values[name] == pytest.approx(prior.values[name])
        assert deviations[name] == pytest.approx(PRIORS["gpu"][name][1])
    assert min(deviations[n] / spread for n, (_, spread) in PRIORS["gpu"].items()) < 0.9


def test_the_latencies_of_one_network_weigh_less_than_those_of_several() -> None:
    prior = priors("gpu")
    apart = observed(prior, AGX, "fp16")
    slow = [replace(o, ms=1.3 * o.ms) for o in apart]
    one = [replace(o, network="the same") for o in slow]
    kernels = slow[3].kernels

    def moved(seen: list[Observation]) -> float:
        ratio = kernel_ms(kernels, AGX, "fp16", fit(seen, prior))
        return ratio / kernel_ms(kernels, AGX, "fp16", prior)

    assert 1 < moved(one) < moved(slow) < 1.3


def test_the_residual_grows_with_what_the_equations_cannot_say() -> None:
    prior = priors("gpu")
    wild = [
        replace(o, ms=o.ms * (3 if i % 2 else 1))
        for i, o in enumerate(observed(prior, AGX, "fp16"))
    ]
    assert fit(wild, prior).residual > 1.5 * RESIDUAL


def test_a_disturbed_measurement_hardly_moves_the_fit() -> None:
    prior = priors("cpu")
    calm = observed(prior, CPU, "fp32", shuffled=0.02)
    kernels = calm[-1].kernels
    shaken = [*calm, replace(calm[2], name="shaken", network="shaken", ms=20 * calm[2].ms)]
    before, after = (kernel_ms(kernels, CPU, "fp32", fit(seen, prior)) for seen in (calm, shaken))
    assert after == pytest.approx(before, rel=0.1)


def test_a_calibration_goes_before_the_package() -> None:
    packaged = efficiencies_of(AGX)
    assert packaged.source == "latency.toml"
    assert set(packaged.values) == set(PRIORS["gpu"])
    assert set(efficiencies_of(CPU).values) == set(PRIORS["cpu"])
    table = {
        "values": {**packaged.values, "arithmetic": 0.5},
        "covariance": packaged.covariance,
        "residual": 0.07,
    }
    found = efficiencies_of(replace(AGX, calibration=table))
    assert (found.values["arithmetic"], found.residual) == (0.5, 0.07)
    assert "calibration" in found.source
    kernels = reference_kernels("CSRNet", (1, 3, 576, 768), "int8")
    calibrated = kernel_ms(kernels, replace(AGX, calibration=table), "int8")
    assert calibrated > kernel_ms(kernels, AGX, "int8")


def test_a_calibration_of_other_equations_is_refused() -> None:
    table = {"values": {"arithmetic": 0.5}, "covariance": [[0.1]], "residual": 0.07}
    with pytest.raises(KDError) as caught:
        efficiencies_of(replace(CPU, calibration=table))
    assert caught.value.code == "calibration-invalid"
    assert "calibrate" in caught.value.fix


def test_the_packages_covariances_are_proper() -> None:
    for target in (AGX, CPU):
        matrix = np.array(efficiencies_of(target).covariance)
        assert np.allclose(matrix, matrix.T)
        assert np.linalg.eigvalsh(matrix).min() > 0
    found = efficiencies_of(AGX)
    spread = [PRIORS["gpu"][n][1] for n in found.names]
    assert (np.sqrt(np.diag(np.array(found.covariance))) <= np.array(spread) * 1.001).all()


def test_another_cpu_may_be_half_or_twice_as_fast_at_everything() -> None:
    own = fit(observed(priors("cpu"), CPU, "fp32", shuffled=0.02), priors("cpu"))
    kernels = reference_kernels("CSRNet", (1, 3, 576, 768), "fp32")
    for count in (1, 4, len(kernels)):
        layout = lay_out(kernels[:count], CPU)
        there, anywhere = (log_deviation(layout, each) for each in (own, elsewhere(own)))
        assert anywhere**2 - there**2 == pytest.approx(ELSEWHERE**2, rel=0.01)
    assert elsewhere(own).values == own.values


def test_launches_without_a_graph_are_told_from_those_of_one() -> None:
    prior, h100 = priors("gpu"), load("h100")
    prior = replace(prior, values={**prior.values, "host": 0.5})  # else it explains them as well
    truth = {**prior.values, "stream": 4.0}
    kernels = reference_kernels("CSRNet-1/4", (1, 3, 576, 768), "fp16")
    seen = [
        Observation(
            f"{count} {graph}", f"{count}", kernels[-count:], h100, "fp16",
            1e3 * times(lay_out(kernels[-count:], h100, graph), truth).total, graph,
        )
        for count in (3, 6, 9, 12, 15) for graph in (True, False)
    ]  # fmt: skip
    found = fit(seen, prior).values
    assert found["stream"] > 2.5
    assert found["launch.card"] == pytest.approx(prior.values["launch.card"], rel=0.1)
    blind = fit([replace(o, graph=True) for o in seen], prior).values
    assert blind["launch.card"] > 1.2 * prior.values["launch.card"]
