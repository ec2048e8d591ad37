"""Stored images scored again, one by one or as sets; nothing is generated."""
