"""The stages in order, their cache keys, the plan and its printer, and the run."""
