"""A fourth set of tasks, drawn when the guard had been tuned to the first three."""
