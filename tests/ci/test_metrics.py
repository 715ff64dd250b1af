import re

from kdcompile.ci.metrics import metrics
from kdcompile.ci.outcome import Outcome

LINE = re.compile(
    r'[a-z_]+\{[a-z]+="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-z]+="(?:[^"\\\n]|\\[\\"n])*")*\} \S+'
)


def test_every_line_is_openmetrics():
    ratios = [{"quantile": "p50", "value": 1.25}, {"quantile": "p99", "value": float("inf")}]
    measured = [{"name": "mae", "unit": "people", "value": float("nan")}]
    nasty = 'a"b\\c\nd\x00\ud800'
    text = metrics(
        [
            Outcome(nasty, "latency", "failed", details={"ratios": ratios}),
            Outcome("acc", "accuracy", "passed", details={"measurements": measured}),
        ]
    )
    assert text.endswith("# EOF\n")
    assert text.encode()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in samples), samples
    assert 'kdcompile_gate_passed{gate="acc"} 1' in samples
    assert samples[0].endswith("} 0")
    assert samples[2].endswith('quantile="p50"} 1.25')
    assert samples[3].endswith('quantile="p99"} +Inf')
    assert samples[4] == 'kdcompile_measured{gate="acc",name="mae",unit="people"} NaN'


def test_no_sample_twice():
    text = metrics([Outcome("a", "size", "failed"), Outcome("a", "size", "passed")])
    assert text.splitlines() == [
        "# TYPE kdcompile_gate_passed gauge", 'kdcompile_gate_passed{gate="a"} 1', "# EOF",
    ]  # fmt: skip
