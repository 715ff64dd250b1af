"""JUnit XML, as Jenkins, GitLab and the test reporters of GitHub read it.

JUnit knows four results. A gate that failed is a `failure`: the product is at fault. One that was
not decided (inconclusive, skipped though required, or broken) is an `error`: the test is at fault
and says nothing of the product. Both are red, and readers count them apart. What waits for the
board, and an optional gate that did not pass, is `skipped`, with the verdict in its message: no
reader turns red over a gate that the exit code does not count.
"""

import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from kdcompile.ci.outcome import Outcome, overall_of
from kdcompile.core.escape import xml


def junit(
    outcomes: Sequence[Outcome],
    title: str,
    now: datetime | None = None,
    verdict: tuple[str, int] | None = None,
) -> str:
    """The document.

    Its structure is that of `junit-10.xsd` of Jenkins' xUnit plug-in; names are escaped, and
    characters that XML cannot hold become U+FFFD.

    Args:
        outcomes: one test case each, in this order.
        title: name of the one test suite.
        now: when it was measured; the present by default.
        verdict: in words and as an exit code; by default what the outcomes say.
    """
    results = [_result(outcome) for outcome in outcomes]
    totals = {
        "name": xml(title),
        "tests": str(len(outcomes)),
        "failures": str(results.count("failure")),
        "errors": str(results.count("error")),
        "time": _seconds(sum(outcome.seconds for outcome in outcomes)),
    }
    root = Element("testsuites", totals)
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S")
    more = {"skipped": str(results.count("skipped")), "timestamp": when, "hostname": _host()}
    suite = SubElement(root, "testsuite", totals | more)
    words, code = verdict or overall_of(outcomes)
    properties = SubElement(suite, "properties")
    for name, value in (("verdict", words), ("exit_code", str(code))):
        SubElement(properties, "property", {"name": name, "value": xml(value)})
    for outcome, result in zip(outcomes, results, strict=True):
        _case(suite, outcome, result)
    indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _result(outcome: Outcome) -> str:
    """The element of a test case's result; empty where it passed."""
    if outcome.verdict == "passed":
        return ""
    if not outcome.red:
        return "skipped"
    return "failure" if outcome.verdict == "failed" else "error"


def _case(suite: Element, outcome: Outcome, result: str) -> None:
    case = SubElement(
        suite,
        "testcase",
        {
            "classname": f"kdcompile.{xml(outcome.kind)}",
            "name": xml(outcome.name),
            "time": _seconds(outcome.seconds),
        },
    )
    facts = {
        "observed": outcome.observed, "threshold": outcome.threshold, "reason": outcome.reason,
    }  # fmt: skip
    text = xml("\n".join(f"{name}: {value}" for name, value in facts.items() if value))
    if not result:
        if text:
            SubElement(case, "system-out").text = text
        return
    optional = "" if outcome.required else "optional, "
    first = outcome.observed or outcome.reason.partition("\n")[0]
    message = xml(f"{optional}{outcome.verdict}" + (f": {first}" if first else ""))
    attributes = {"message": message, "type": outcome.verdict}
    # readers differ in whether they show the message or the text, so the text has all of it
    SubElement(case, result, attributes).text = text or message


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _host() -> str:
    return xml(socket.gethostname()) or "localhost"
