"""Blood cells under a microscope, counted and detected."""
