"""Statistics for decisions: intervals, tests, sample sizes."""
