"""NaN-Bench: real training failures of detectors, each re-created from a cited report, run against every system.

``python bench/nanbench/run.py --help``. What it measures and how is in `report.py`, which writes the results.
"""
