"""Plug-ins of kdcompile: a recipe, a task, a gate, a data format, a target and a calibrator."""
