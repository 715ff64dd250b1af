"""A missing tool is exit 4 with the way to get it."""

import pickle

import pytest

from kdcompile.core.errors import EXIT_MISSING, KDError, ToolMissingError, nearest
from kdcompile.core.optional import need


def test_a_module_that_is_there():
    assert need("json", "cpu", "this test").loads("1") == 1


def test_a_module_that_is_not():
    with pytest.raises(KDError) as error:
        need("no_such_module", "rtx", "the compile check")
    assert error.value.exit_code == EXIT_MISSING
    assert "the compile check needs no_such_module" in error.value.message
    assert "pip install 'kdcompile[rtx]'" in error.value.fix


def test_the_block_leaves_out_what_is_empty():
    assert str(KDError("code", "message")) == "error[code]: message"
    assert str(KDError("code", "message", "here", "do this")).splitlines() == [
        "error[code]: message",
        "  where: here",
        "  fix:   do this",
    ]


def test_nearest():
    assert nearest("stepz", ["steps", "epochs"]) == " (did you mean 'steps'?)"
    assert nearest("zzz", ["steps"]) == ""


@pytest.mark.parametrize("kind", [KDError, ToolMissingError])
def test_errors_cross_processes(kind):
    error = pickle.loads(pickle.dumps(kind("code", "message", "here", "do this")))
    assert type(error) is kind
    assert (error.code, error.message, error.where, error.fix) == (
        "code", "message", "here", "do this",
    )  # fmt: skip
    assert error.exit_code == kind.exit_code
