"""Calibration: images, ranges of tensors, Q/DQ nodes, mixed precision and audits."""
