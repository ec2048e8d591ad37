"""The one exception that is the user's to mend."""


class UserError(Exception):
    """A mistake in what was asked: one line that names the key and the remedy, shown without a traceback."""
