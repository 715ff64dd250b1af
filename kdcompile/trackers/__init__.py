"""Experiment trackers: where a build writes its curves, results and report, one file each."""
