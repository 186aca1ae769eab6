"""Mask R-CNN for K classes; one step of it as a pure function."""
