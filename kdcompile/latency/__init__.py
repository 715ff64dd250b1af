"""Measure latency and compare measurements: sampler, interference, baselines, reports."""
