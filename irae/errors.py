"""The base of all errors that are the user's to mend; the command prints their one sentence and no traceback."""


class IraeError(ValueError):
    """Something that cannot be done as asked: one clear sentence with the way out."""
