"""A student's update as a small file: what changed in its weights, compressed (docs/delta.md).

    from kdcompile.delta import apply, make

Adapted from GraftLLM's SkillPack (arXiv 2505.18502), which keeps a skill of a language model as a
compressed change of its weights.
"""

from kdcompile.delta.applying import apply as apply
from kdcompile.delta.making import make as make
