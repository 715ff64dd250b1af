"""Predict a network's latency on a device that is not connected."""
