"""Loops as tutorials have them, twenty tasks in small, and the faults that people meet in them."""
