"""Adapters for other trainers: each imports its own package, and nothing else of it is imported anywhere here."""
