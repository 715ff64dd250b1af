"""What every room may use: errors, store, files, locks, logs, progress, user code."""
