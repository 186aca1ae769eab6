"""A step taken again, away from the run. Generic: knows no detector."""
