"""What a sweep would be on up to hundreds of workers, on paper: ``python -m tools.scaling``."""
