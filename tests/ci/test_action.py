"""The GitHub Action and the GitLab snippet: their form, and their shell parts run for real."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcompile.ci.report import FILES

CI = Path(__file__).parents[2] / "ci"
# the schema of each file, as check-jsonschema carries it, and a key that it must not do without
SCHEMAS = {
    "action.yml": ("vendor.github-actions", "  using"),
    "example-workflow.yml": ("vendor.github-workflows", "    runs-on"),
    "gitlab.yml": ("vendor.gitlab-ci", "    when"),
}
OWN = re.compile(r"uses: OWNER/kdcompile/ci@COMMIT$")
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
INPUT = re.compile(r"inputs\.([\w-]+)")
# stands for kdcompile: writes down its words, one a line, leaves a verdict and an exit code
FAKE = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$WORDS"
while [ $# -gt 0 ]; do if [ "$1" = --ci-folder ]; then folder="$2"; fi; shift; done
if [ -n "$VERDICT" ]; then mkdir -p "$folder"; printf '%s' "$VERDICT" > "$folder/outcomes.json"; fi
exit "$CODE"
"""


@pytest.fixture
def shell(tmp_path):
    """Runs a script with a played kdcompile; gives what ran, the words and the step's outputs."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "kdcompile"
    fake.write_text(FAKE)
    fake.chmod(0o755)

    def call(command, code=0, verdict="", **variables):
        environment = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "WORDS": str(tmp_path / "words"), "GITHUB_OUTPUT": str(tmp_path / "output"),
            "CODE": str(code), "VERDICT": verdict, **variables,
        }  # fmt: skip
        found = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        words, output = tmp_path / "words", tmp_path / "output"
        return (
            found,
            words.read_text().splitlines() if words.exists() else None,
            output.read_text().splitlines() if output.exists() else None,
        )

    return call


RUN = ["bash", str(CI / "run.sh")]


def test_bench_takes_its_inputs(shell):
    found, words, output = shell(
        RUN, COMMAND="bench", ARTIFACT="a b.onnx", BASELINE="$(touch hacked); x.json", MARGIN="3%",
        VIA="ssh://user@board", ARGUMENTS="--until-decided\n--allow\n*\n", FOLDER="out folder",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert words == [
        "bench", "a b.onnx", "--margin", "3%", "--baseline", "$(touch hacked); x.json",
        "--via", "ssh://user@board", "--until-decided", "--allow", "*", "--ci",
        "--ci-folder", "out folder",
    ]  # fmt: skip
    assert output == ["exit-code=0", "verdict="]
    _, words, _ = shell(RUN, COMMAND="bench", ARTIFACT="a", BASELINE="b", REFERENCE="c d")
    assert words[:6] == ["bench", "a", "--baseline", "b", "--reference", "c d"]


def test_compare_takes_two_files_the_old_one_first(shell):
    found, words, _ = shell(
        RUN, 3, COMMAND="compare", ARTIFACT="new one.onnx", REFERENCE="old.onnx", MARGIN="5%",
        ARGUMENTS="--until-decided",
    )  # fmt: skip
    assert found.returncode == 3
    assert words == [
        "compare", "old.onnx", "new one.onnx", "--margin", "5%", "--until-decided",
        "--ci", "--ci-folder", "kdcompile-ci",
    ]  # fmt: skip


def test_empty_inputs_are_no_options(shell):
    _, words, _ = shell(RUN, COMMAND="build", SPEC="", TARGET="", VIA="", ARGUMENTS="")
    assert words == ["build", ".", "--ci", "--ci-folder", "kdcompile-ci"]


def test_build_takes_its_inputs(shell):
    _, words, _ = shell(RUN, COMMAND="build", SPEC="crowd", TARGET="jetson", REQUIRE_DEVICE="true")
    assert words[:6] == ["build", "crowd", "--target", "jetson", "--require", "device"]


@pytest.mark.parametrize("code", [0, 1, 3, 4, 5])
def test_the_exit_code_and_the_verdict_come_through(shell, code):
    verdict = '{"verdict": "failed:\\nsize_mb"}'
    found, _, output = shell(RUN, code, verdict, COMMAND="bench", ARTIFACT="a.onnx")
    assert found.returncode == code
    assert output == [f"exit-code={code}", "verdict=failed: size_mb"]


def test_a_broken_report_does_not_change_the_exit_code(shell):
    found, _, output = shell(RUN, 5, "{", COMMAND="bench", ARTIFACT="a.onnx")
    assert found.returncode == 5
    assert output == ["exit-code=5", "verdict="]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"COMMAND": "bench"}, "'artifact' is empty"),
        ({"COMMAND": "compare", "REFERENCE": "old.onnx"}, "'artifact' is empty"),
        ({"COMMAND": "compare", "ARTIFACT": "new.onnx"}, "'reference' is empty"),
        ({"COMMAND": "compare", "ARTIFACT": "n", "REFERENCE": "o", "BASELINE": "b"}, "'baseline'"),
        ({"COMMAND": "clean"}, "bench, compare or build"),
        ({}, "bench, compare or build"),
    ],
)
def test_wrong_inputs(shell, tmp_path, variables, said):
    old = tmp_path / "out folder" / "junit.xml"
    old.parent.mkdir()
    old.write_text("<of an earlier run/>")
    found, words, _ = shell(RUN, **variables, FOLDER=old.parent.name)
    assert (found.returncode, words) == (2, None)
    assert found.stderr.startswith("::error title=kdcompile::")
    assert said in found.stderr
    assert not old.exists(), "what is uploaded would be of the run before"


def test_the_reports_that_are_removed_are_those_that_are_written(shell, tmp_path):
    for name in (*FILES, "mine.txt"):
        (tmp_path / name).write_text("")
    shell(RUN, COMMAND="build", FOLDER=".")
    assert not any((tmp_path / name).exists() for name in FILES)
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("script", sorted(CI.glob("*.sh")), ids=lambda p: p.name)
def test_scripts_parse_and_stop_at_errors(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "set -euo pipefail" in script.read_text()


def test_installing_takes_the_checkout_of_the_action(tmp_path):
    (tmp_path / "kdcompile").write_text("#!/bin/sh\necho version\n")
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$WORDS"\n')
    for name in ("kdcompile", "python"):
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "WORDS": str(tmp_path / "words"),
        "SOURCE": "/action path/..", "EXTRAS": "cpu", "TORCH_INDEX": "https://index",
    }  # fmt: skip
    subprocess.run(["bash", CI / "install.sh"], env=environment, check=True, capture_output=True)
    pip = "-m pip install --quiet --constraint /action path/../constraints.txt"
    assert (tmp_path / "words").read_text().splitlines() == [
        f"{pip} --index-url https://index torch", f"{pip} /action path/..[cpu]",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["build", "bench", "compare"])
def test_the_command_has_every_option_that_the_scripts_give(name):
    from kdcompile.cli import cli

    known = {option for parameter in cli.commands[name].params for option in parameter.opts}
    used = {
        "build": {"--baseline", "--target", "--require"},
        "bench": {"--baseline", "--margin", "--reference"},
        "compare": {"--margin"},
    }
    assert {"--ci", "--ci-folder", "--via"} | used[name] <= known


# ---- the YAML files ----


def check_schema(file, schema):
    command = pytest.importorskip("check_jsonschema").main
    return CliRunner().invoke(command, ["--builtin-schema", schema, str(file)])


def load(name):
    pytest.importorskip("ruamel.yaml")
    from ruamel.yaml import YAML

    return YAML(typ="safe").load((CI / name).read_text())


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name, tmp_path):
    schema, key = SCHEMAS[name]
    # the schema looks into no hidden job
    text = (CI / name).read_text().replace("\n.kdcompile", "\nkdcompile")
    made = tmp_path / name
    made.write_text(text)
    found = check_schema(made, schema)
    assert found.exit_code == 0, found.output
    assert key in text
    made.write_text(text.replace(key, f"{key}x"))
    assert check_schema(made, schema).exit_code == 1, "the schema checks nothing"


def unpinned(text):
    """The lines that use an action by anything but a commit; COMMIT stands for the user's own."""
    lines = [line for line in text.splitlines() if re.search(r"\buses:", line)]
    return [line for line in lines if not PINNED.search(line) and not OWN.search(line)]


def test_every_action_is_pinned_to_a_commit():
    texts = [*CI.glob("*.yml"), *CI.parent.glob("docs/*.md"), CI.parent / "README.md"]
    texts += CI.parent.glob(".github/**/*.yml")
    assert sum(path.read_text().count("uses:") for path in texts) >= 9
    assert {
        path.name: unpinned(path.read_text()) for path in texts if unpinned(path.read_text())
    } == {}


@pytest.mark.parametrize(
    "action",
    ["actions/checkout@v6", "actions/checkout@main", "actions/checkout", "OWNER/kdcompile/ci@main",
     "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd",
     "actions/checkout@de0fac2 # v6.0.2"],
)  # fmt: skip
def test_a_tag_or_a_branch_is_refused(action):
    assert unpinned(f"  - uses: {action}\n") == [f"  - uses: {action}"]


def test_inputs_are_declared_used_and_never_pasted_into_shell():
    action = load("action.yml")
    text = (CI / "action.yml").read_text()
    assert set(INPUT.findall(text)) == set(action["inputs"])
    for step in action["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert ("run" in step) == ("shell" in step) != ("uses" in step)
        used = set(re.findall(r"\$\{?([A-Z_]+)", step.get("run", "")))
        assert used <= set(step.get("env", {}))


def test_the_scripts_read_what_the_action_hands_them():
    steps = [step for step in load("action.yml")["runs"]["steps"] if "run" in step]
    for step in steps:
        script = CI / re.search(r"ci/(\w+\.sh)", step["run"]).group(1)
        read = set(re.findall(r"\$\{?([A-Z_]+)", script.read_text())) - {"GITHUB_OUTPUT"}
        assert read | {"SOURCE"} == set(step["env"])


def test_the_example_names_inputs_that_exist():
    inputs = load("action.yml")["inputs"]
    jobs = load("example-workflow.yml")["jobs"].values()
    given = [s["with"] for job in jobs for s in job["steps"] if s["uses"].startswith("OWNER/")]
    assert [values["command"] for values in given] == ["bench", "compare", "build"]
    assert all(set(values) <= set(inputs) for values in given)
    assert len({values["artifact-name"] for values in given}) == 3, "two uploads of one name fail"


def test_gitlab_jobs_run(shell):
    jobs = load("gitlab.yml")
    common = jobs[".kdcompile"]
    assert common["artifacts"]["reports"] == {
        "junit": "$KDCOMPILE_FOLDER/junit.xml", "metrics": "$KDCOMPILE_FOLDER/metrics.txt",
    }  # fmt: skip
    ci = ["--ci", "--ci-folder", "out folder"]
    variables = {"KDCOMPILE_FOLDER": "out folder", "KDCOMPILE_VIA": "python:p"}
    for name, given, words in (
        ("bench", {"ARTIFACT": "a b.onnx", "BASELINE": "b.json", "MARGIN": "3%"},
         ["bench", "a b.onnx", "--margin", "3%", "--baseline", "b.json", "--via", "python:p"]),
        ("compare", {"ARTIFACT": "a b.onnx", "REFERENCE": "old.onnx", "MARGIN": "5%"},
         ["compare", "old.onnx", "a b.onnx", "--margin", "5%", "--via", "python:p"]),
        ("build",
         {"SPEC": "crowd", "TARGET": "jetson", "BASELINE": "old", "REQUIRE_DEVICE": "true"},
         ["build", "crowd", "--target", "jetson", "--baseline", "old", "--require", "device",
          "--via", "python:p"]),
    ):  # fmt: skip
        assert jobs[f".kdcompile-{name}"]["extends"] == ".kdcompile"
        command = ["sh", "-euc", "\n".join(jobs[f".kdcompile-{name}"]["script"])]
        given = variables | {f"KDCOMPILE_{key}": value for key, value in given.items()}
        found, written, _ = shell(command, 3, **given)
        assert (found.returncode, written) == (3, words + ci), found.stderr


def test_the_examples_words_are_the_commands_options():
    from kdcompile.cli import cli

    for job in load("example-workflow.yml")["jobs"].values():
        given = next(s["with"] for s in job["steps"] if s["uses"].startswith("OWNER/"))
        known = {opt for param in cli.commands[given["command"]].params for opt in param.opts}
        assert set(given.get("arguments", "").split()) <= known


@pytest.fixture
def prepare(shell, tmp_path):
    """Runs GitLab's before_script; a played Python notes what it shall install."""

    def call(has=True, **variables):
        python = tmp_path / "bin" / "python"
        python.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> pip\n')
        python.chmod(0o755)
        if not has:
            (tmp_path / "bin" / "kdcompile").unlink()
        script = "\n".join(load("gitlab.yml")[".kdcompile"]["before_script"])
        found, *_ = shell(
            ["/bin/sh", "-euc", script], PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin", **variables
        )
        pip = tmp_path / "pip"
        return found, pip.read_text().splitlines() if pip.exists() else []

    return call


@pytest.mark.parametrize(
    "package", ["kdcompile[cpu] @ git+https://host/OWNER/kdcompile@COMMIT", "./kdcompile[cpu]"]
)
def test_gitlab_installs_what_the_user_names(prepare, package):
    pip = "-m pip install --quiet"
    found, ran = prepare(KDCOMPILE_PACKAGE=package, KDCOMPILE_TORCH_INDEX="https://index")
    assert (found.returncode, ran) == (0, [f"{pip} --index-url https://index torch",
                                           f"{pip} {package}"])  # fmt: skip


def test_gitlab_takes_the_kdcompile_of_the_machine(prepare):
    variables = load("gitlab.yml")[".kdcompile"]["variables"]
    found, ran = prepare(**variables)
    assert (found.returncode, ran) == (0, [])


def test_gitlab_without_kdcompile_names_the_variable(prepare):
    found, ran = prepare(has=False, KDCOMPILE_PACKAGE="")
    assert (found.returncode, ran) == (4, [])
    assert "set KDCOMPILE_PACKAGE" in found.stderr
