"""Annotated images: what they say, formats, splits, training targets, augmentation."""
