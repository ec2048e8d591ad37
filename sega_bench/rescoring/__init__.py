"""Score stored images again, one by one or as sets; nothing is generated."""
