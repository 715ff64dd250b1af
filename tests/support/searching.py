"""A search of seconds, on the counting build of `staged_ground`."""

from command_line import contents

from kdcompile.passes.manager import make_plan

SETS = (
    "target=cpu", "student.family=search", "search.space=staged", "student.budget={macs=30000}",
    "student.crops=4", "search.candidates=40",
    "search.finalists=2", "search.finalist_steps=4", "distill.steps=4",
)  # fmt: skip
LAYERS = ("search.space=layers", "student.budget={macs=40000}")


def searched(load, *sets):
    """The plan of a spec's loader, and the artifact of its search."""
    plan = make_plan(load(*SETS, *sets))
    return plan, plan.make("search")


def same_files(one, other):
    """Whether two artifacts have the same bytes, whatever stores they are in."""
    return contents(one.path) == contents(other.path)
