"""The files that take longest begin first, so that no worker waits for another at the end.

xdist by itself begins with the files of most tests, and the longest have few: whole builds and
trainings. `make test` turns that off.
"""

from pathlib import Path

TESTS = Path(__file__).parents[1]
LONGEST = (
    "kernels/test_aot.py", "test_bad_inputs.py", "test_readme.py", "passes/test_build.py",
    "distill/test_distributed.py", "search/test_searched.py", "passes/test_board.py",
    "api/test_readme_example.py", "distill/test_every_recipe.py", "passes/test_tasks.py",
    "search/test_search_again.py", "search/test_search_classes.py",
    "passes/test_new_classes.py", "passes/test_rules.py",
    "passes/test_survival.py", "cli/test_bad_networks.py", "cli/test_search.py",
    "distill/test_inherit_digits.py", "distill/test_train.py",
    "test_digits_example.py", "test_cifar10_example.py", "test_packaging.py", "test_security.py",
    "bundle/test_bundle_product.py", "bundle/test_cpp.py", "gates/test_deployed.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    place = {TESTS / name: number for number, name in enumerate(LONGEST)}
    kernels = TESTS / "kernels"  # in Triton's interpreter

    def rank(item):
        return place.get(item.path, len(LONGEST) + (kernels not in item.path.parents))

    items.sort(key=rank)  # stable: the tests of a file stay together, in their order
