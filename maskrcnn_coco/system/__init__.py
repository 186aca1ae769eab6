"""The machine under the run: files, memory, libraries, numerics."""
