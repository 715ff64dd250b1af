"""Images with point annotations: formats, splits, densities, augmentation."""
