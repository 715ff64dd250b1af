"""Change each threshold, guard and sum of some files, one at a time: some test must fail.

mutmut 3 changes functions only, and most thresholds are constants of a module. cosmic-ray changes
the files of the checkout themselves and starts a process for each mutant, which imports for 3 s.
Here a mutant runs in a fork of a process that has imported the libraries, against the tests that
reach its line, the fastest first.

    python tests/support/mutants.py [FILE ...] [--kinds threshold,guard,sum] [--limit N]

Survivors are printed as they are found, and a table of all files at the end.
"""

import argparse
import ast
import gc
import importlib
import json
import os
import resource
import sys
import tempfile
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path

ROOMS = {
    "kdcompile/stats": ("tests/stats", "tests/gates"),
    "kdcompile/gates": ("tests/gates",),
    "kdcompile/latency/compare.py": (
        "tests/latency",
        "tests/cli/test_bench.py",
        "tests/cli/test_bench_baseline.py",
        "tests/cli/test_bench_undecided.py",
    ),
}
LIBRARIES = ("torch", "scipy.stats", "onnx", "hypothesis", "pydantic", "click", "pytest")
OPERATORS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}  # fmt: skip
# pytest's rewriting of asserts would load the unchanged file of a package that is its plug-in
QUIET = ("-q", "-p", "no:cacheprovider", "--assert=plain")
DECLARED = ("frozen", "eq", "slots", "strict")  # neither thresholds nor guards: they hold for all
COLUMNS = ("mutants", "killed", "survived", "equivalent")
# changes that no test can notice, by file and words (or words and line), and why
CLOCK = "a clock's reading is never that moment"
ROOT = "a bound is the root of an equation, which no share that a spec names equals"
TOGETHER = "neither comes without the other"
DRAWS = "one draw more of so many moves nothing that is promised"
START = "the search never asks at its start, where alone that is"
WHOLE = "a share of whole images is not so near to 1 and not 1"
EQUIVALENT = {
    "kdcompile/stats/bootstrap.py": {
        "9999 -> 10000": DRAWS,
        "2000000 -> 2000001": "it bounds the memory of a batch, whose size moves no draw",
    },
    "kdcompile/stats/sample_size.py": {
        "1000 -> 1001": DRAWS,
        "2 -> 3: few, many = many, min(2 * many, MOST)": "other steps end at the same number",
        "0 -> 1: rng = np.random.default_rng(0)": "any seed does, as long as it stays",
        "wanted >= 1 -> wanted > 1": ROOT,
    },
    "kdcompile/stats/comparison.py": {
        "0 -> 1: looked_at: int = 0": "it is read only after a look has set it",
    },
    "kdcompile/stats/hierarchical.py": {
        "200 -> 201": DRAWS,
        "0.5 -> 0.625": "the upper quantiles alone are read of it, and their number",
        "if len({len(block) for block in blocks}) == 1 -> if False": "one way is only quicker",
        "spread > chdtri(own, REFUTED) -> spread >= chdtri(own, REFUTED)": ROOT,
    },
    "kdcompile/stats/noninferiority.py": {
        "low is None or high is None -> low is None and high is None": TOGETHER,
        "100 -> 101": "the hundredth halving is far below what a float holds",
        "1e-09 -> 1.25e-09": WHOLE,
        "observed >= 1 - SURE -> observed > 1 - SURE": WHOLE,
        "observed <= -1 + SURE -> observed < -1 + SURE": WHOLE,
        "abs(_score(difference, lost, won, n)) <= z -> "
        "abs(_score(difference, lost, won, n)) < z": ROOT,
        "variance > 0 -> variance >= 0": START,
        "gap == 0 -> gap != 0": START,
        "0.0 -> 1.0: return gap / math.sqrt(variance) if variance > 0 else "
        "(0.0 if gap == 0 else math.inf)": START,
    },
    "kdcompile/stats/latency_interval.py": {"4000 -> 4001": DRAWS},
    "kdcompile/stats/latency_test.py": {
        "value > BEYOND[0] * margin -> value >= BEYOND[0] * margin": "both are half the margin",
    },
    "kdcompile/stats/pairing.py": {
        "bdtrc(counts[i] - 1, sum(counts), share) < LEANING -> "
        "bdtrc(counts[i] - 1, sum(counts), share) <= LEANING": ROOT,
        "0 -> 1: left_out += len(pairs[0]) - len(whole)": "both have as many, or are refused",
    },
    "kdcompile/latency/compare.py": {
        "now + (now - begun) > end -> now + (now - begun) >= end": CLOCK,
    },
    "kdcompile/gates/bias.py": {
        "0.0 -> 1.0: return find_bias(np.zeros(n), seed).judge(0.0), "
        '"one image has no interval"': "errors of 0 are within any limit",
    },
    "kdcompile/gates/board_record.py": {
        "False -> True: first = error.errors(include_url=False, include_input=False)[0]": (
            "neither is told"
        ),
    },
    "kdcompile/gates/from_board.py": {
        "1 -> 2: samples = PairedTimes("
        "np.array(a, np.float64), np.array(b, np.float64), 1)": "no gate asks for the repeats",
        "0 -> 1: frame=frame_of_board(record.frame, 0 if record.test is None else "
        "record.test.seed),": "any seed does, as long as it stays",
    },
    "kdcompile/gates/speedup.py": {
        "found is None or ratio is None -> found is None and ratio is None": TOGETHER,
    },
    "kdcompile/gates/previous.py": {
        "earlier is None or outcomes.previous is None -> "
        "earlier is None and outcomes.previous is None": TOGETHER,
    },
    "kdcompile/gates/churn.py": {
        "high <= most -> high < most": ROOT,
        "low > most -> low >= most": ROOT,
    },
}
FIRST = 12  # tests that run before the others are collected
SECONDS = 60  # of CPU for the tests of one mutant: one that never ends is found too


def changes(tree):
    """Every change: (line, kind, words, a function that makes it in the tree)."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Raise | ast.JoinedStr):  # what is told of an error
            waiting = waiting[: len(waiting) - len([*ast.iter_child_nodes(node)])]
        elif isinstance(node, ast.AnnAssign | ast.arg) and node.annotation in waiting:
            waiting.remove(node.annotation)
        elif isinstance(node, ast.FunctionDef) and node.returns in waiting:
            waiting.remove(node.returns)
        elif isinstance(node, ast.keyword) and node.arg in DECLARED:
            waiting.remove(node.value)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            new = _other(node.value)
            yield node.lineno, "threshold", f"{node.value} -> {new}", _setter(node, "value", new)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
            ops = [OPERATORS[type(node.ops[0])](), *node.ops[1:]]
            yield node.lineno, "guard", _words(node, "ops", ops), _setter(node, "ops", ops)
        elif isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in OPERATORS:
            new, kind = (
                OPERATORS[type(node.op)](),
                "guard" if isinstance(node, ast.BoolOp) else "sum",
            )
            yield node.lineno, kind, _words(node, "op", new), _setter(node, "op", new)
        elif isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise | ast.Return):
            never = ast.Constant(False, lineno=node.lineno, col_offset=0)
            text = f"if {ast.unparse(node.test)} -> if False"
            yield node.lineno, "guard", text, _setter(node, "test", never)


def _other(value):
    if type(value) is bool:
        return not value
    return value + 1 if type(value) is int else value * 1.25 or 1.0


def _setter(node, name, value):
    return lambda: setattr(node, name, value)


def _words(node, name, value):
    before, old = ast.unparse(node), getattr(node, name)
    setattr(node, name, value)
    after = ast.unparse(node)
    setattr(node, name, old)
    return f"{before} -> {after}"


class Mutated:
    """Finds one module and gives its changed tree; before the finders of the checkout."""

    def __init__(self, path, tree):
        self.name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        self.path, self.tree = path, tree

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return ModuleSpec(name, self, origin=str(self.path.resolve()))

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__file__ = str(self.path.resolve())
        exec(compile(self.tree, module.__file__, "exec"), vars(module))


class Lines:
    """A pytest plug-in: which tests reach which lines, and how long each takes."""

    def __init__(self):
        from coverage import Coverage

        self.cover = Coverage(data_file=None, config_file=False, include=["kdcompile/*"])
        self.seconds = {}

    def pytest_sessionstart(self):
        self.cover.start()

    def pytest_runtest_setup(self, item):
        self.cover.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def found(self):
        self.cover.stop()
        data = self.cover.get_data()
        lines = {f: data.contexts_by_lineno(f) for f in data.measured_files()}
        return {"lines": lines, "seconds": self.seconds}


def forked(work):
    """The exit code of `work` in a child of this process, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        code = 99
        try:
            code = int(work())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _pytest(words, *plugins):
    import pytest

    return pytest.main([*QUIET, *words], list(plugins))


def reached(rooms):
    """By file and line the tests that reach it."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:

        def work():
            lines = Lines()
            code = _pytest(rooms, lines)
            Path(file.name).write_text(json.dumps(lines.found()))
            return code

        if forked(work):
            sys.exit(f"the tests of {', '.join(rooms)} fail before anything is changed")
        return json.loads(file.read())


def survives(path, number, tests):
    """Whether all tests pass with one change; what no test reaches survives."""

    def work():
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        tree = ast.parse(path.read_text())
        list(changes(tree))[number][3]()
        sys.meta_path.insert(0, Mutated(path, tree))
        # collecting the files of all tests takes longer than the first ones, which mostly do
        return any(_pytest(["-x", *some]) for some in (tests[:FIRST], tests[FIRST:]) if some)

    return not tests or forked(work) == 0


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def judged(path, kinds, limit, known):
    """Run the changes of one file; its row of the table, and the reasons of those left out."""
    lines, source = known["lines"].get(str(path.resolve()), {}), path.read_text().splitlines()
    everything = {t for found in lines.values() for t in found}
    chosen = [
        (kinds.index(kind), number, line, words)
        for number, (line, kind, words, _) in enumerate(changes(ast.parse(path.read_text())))
        if kind in kinds
    ]
    row, reasons = Counter(), []
    for kind, number, line, words in sorted(chosen)[:limit]:
        row["mutants"] += 1
        own = EQUIVALENT.get(str(path), {})
        if reason := own.get(words) or own.get(f"{words}: {source[line - 1].strip()}"):
            row["equivalent"] += 1
            reasons.append(f"{path}:{line}: {words}: {reason}")
            continue
        # what runs at an import may be read by tests that reach no line of the file
        near = set(lines.get(str(line), ())) - {""} or known["seconds"]
        tests = sorted(near, key=lambda t: (t not in everything, known["seconds"][t]))
        alive = survives(path, number, tests)
        row["survived" if alive else "killed"] += 1
        if alive:
            say(f"{path}:{line}: {kinds[kind]}: {words}")
    return row, reasons


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--kinds", default="threshold,guard,sum", help="those first named first")
    parser.add_argument("--limit", type=int, help="changes of one file")
    given = parser.parse_args()
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # a child that collects garbage would copy all that the libraries hold
    gc.set_threshold(20_000, 10, 10)
    table, equivalent = [], []
    for room, tests in ROOMS.items():
        files = [Path(room)] if room.endswith(".py") else sorted(Path(room).glob("*.py"))
        files = [f for f in files if not given.files or f in given.files]
        known = reached(tests) if files else {}
        for path in files:
            row, reasons = judged(path, given.kinds.split(","), given.limit, known)
            table.append(" | ".join([f"| {path}", *(str(row[c]) for c in COLUMNS)]) + " |")
            say(table[-1])
            equivalent += reasons
    say(
        "\n".join(["| file | " + " | ".join(COLUMNS) + " |", "|---" * 5 + "|", *table, *equivalent])
    )


if __name__ == "__main__":
    main()
