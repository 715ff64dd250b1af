"""Distillation: the training of a student from its teacher, by recipes."""
