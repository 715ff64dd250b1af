"""Bundles: the files that a build hands over, their manifest, signature, report and merge."""
