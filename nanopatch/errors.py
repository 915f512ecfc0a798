"""The one error class of the library."""


class NanopatchError(ValueError):
    """The base of every error that a user can fix. Its text says what was given, what was expected and what to do."""
