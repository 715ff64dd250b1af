"""Reports for CI systems, and the pytest plug-in."""
