"""Annotations and images → batches that know their samples."""
