"""What a run tells: console, files, page."""
