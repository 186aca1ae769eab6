"""One step or none. Generic: knows no detector."""
