"""Search for the student architecture: spaces, quality predictors, Pareto front, reports."""
