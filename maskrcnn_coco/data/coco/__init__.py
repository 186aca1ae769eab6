"""The annotation file, columnar."""
