"""Losses, augmentation and calibration as Triton kernels, each with its PyTorch reference.

Depends on torch and Triton alone, so the folder can be lifted out. docs/kernels.md lists them.
"""

from kdcompile.kernels._runtime import forget, ran

__all__ = ["forget", "ran"]
