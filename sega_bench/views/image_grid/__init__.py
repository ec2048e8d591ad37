"""Labelled sheets of a sweep's images."""
