"""Files that resume a run: atomic, verified, in the background."""
