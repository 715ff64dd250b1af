"""Shared foundations: errors, store, files, locks, logs, progress, user code, measurement."""
