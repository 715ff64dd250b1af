"""The part `build` of the engine benchmark: the product's own command, and what came of it."""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

CHOICE = ("precision", "basis", "why")
GATE = ("name", "verdict", "required", "threshold", "observed", "evidence", "reason")


def run_build(options: argparse.Namespace, least: float) -> dict[str, Any]:
    """`kdcompile build` at the place with a limit of the speed-up; its progress is shown.

    Returns:
        The exit code and seconds; where there is a report, its verdict, its gates with their
        evidence, and what `auto` chose and why.
    """
    bundle = options.work / f"bundle-{least:g}"
    sets = [*options.sets, f"gates.speedup.min={least}"]
    command = [sys.executable, "-m", "kdcompile", "build", str(options.spec), "--json"]
    command += ["--via", options.via, "-o", str(bundle)]
    command += [word for one in sets for word in ("--set", one)]
    if options.target is not None:
        command += ["--target", options.target]
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = {"least": least, "exit_code": done.returncode, "seconds": time.monotonic() - start}
    try:
        told = json.loads(done.stdout)
        gates = [{name: gate[name] for name in GATE} for gate in told["gates"]]
        choice = {name: told["details"]["choice"][name] for name in CHOICE}
    except (ValueError, KeyError):  # an error, which standard error has told
        return found
    return {**found, "verdict": told["verdict"], "gates": gates, "choice": choice}
