"""Distillation recipes, one file each; `kdcompile recipes` lists what lies in this folder."""
