"""Trainings as people write them, each a loop of its own, for the guard behind it."""
