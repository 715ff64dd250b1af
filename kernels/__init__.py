"""Distillation losses on feature maps. Depends on torch alone, so the folder can be lifted out."""
