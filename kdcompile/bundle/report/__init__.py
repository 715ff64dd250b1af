"""The report as one HTML page: what it shows first, its charts and pictures, and comparisons."""
