"""Distillation losses as Triton kernels, each beside its plain PyTorch reference.

Depends on torch and Triton alone, so the folder can be lifted out. docs/kernels.md lists them.
"""

from kdcompile.kernels._runtime import ran

__all__ = ["ran"]
