"""The one error class of the library."""


class NanopatchError(ValueError):
    """The base of every error that a user can fix. Its text says what was given, what was expected and what to do.

    It is one line. Line breaks and other control characters are escaped, as an error may quote whatever was given.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """A text with line breaks and other characters that cannot be printed escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def count(n: int, noun: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
