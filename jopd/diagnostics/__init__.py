"""What a run measured and what it leaves behind for a reader: intervals, plots, the report."""
