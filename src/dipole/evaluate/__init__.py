"""What came out: statistics with intervals, plots, and the report of a run."""
