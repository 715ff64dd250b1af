"""Methods of the library that are no loss, and so lie outside `recipes/`: where each lives."""

from kdcompile.distill.recipe import About

_METHODS = (
    About(
        name="pcoreset",
        summary="which images to label next, and which to calibrate with",
        formula="argmax_x min_{s in chosen} |p(x) - p(s)|, one after the other (k-center greedy)",
        source="PCoreSet/ActiveKD (2025, arXiv 2506.00910)",
        cost="one forward pass of the pool",
        evidence="tests/data/test_coreset.py: brute force and the 2-approximation; docs/recipes.md",
        home='kdcompile plan --label N with data.unlabelled; quantize.select = "pcoreset"',
    ),
    About(
        name="skillpack",
        summary="a re-trained student as a small delta to the weights that a device has",
        formula="W' = W + U diag(s) V^T by layer, rank and bits by error per byte",
        source="GraftLLM/SkillPack (2025, arXiv 2505.18502), for convolutions and over the air",
        cost="none in training; none on the device, where the delta is merged before the engine",
        evidence="tests/delta: round trips, hashes, the accuracy gate; docs/recipes.md",
        home="kdcompile delta make and apply",
    ),
)
ELSEWHERE = {about.name: about for about in _METHODS}
