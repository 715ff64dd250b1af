"""Backends: what builds and runs a network, and the choice of the precision that ships."""
