"""The version of the code, as records and plan.json state it."""

__version__ = "0.1.0"
