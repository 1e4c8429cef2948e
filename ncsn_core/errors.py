"""Errors in the user's language; the command line prints them without a traceback."""

from collections.abc import Iterable


class NCSNError(Exception):
    """Something the user can mend; the message says what was wrong and what to do."""


class UnknownNameError(NCSNError, ValueError):
    """A name that is not in a list; the message holds the list."""

    def __init__(self, kind: str, name: object, known: Iterable[str], hint: str = "") -> None:
        listed = ", ".join(known) or "none"
        ending = f". {hint}" if hint else ""
        super().__init__(f"unknown {kind} {str(name)!r}; known: {listed}{ending}")


class CorruptFileError(NCSNError):
    """A file that is truncated, altered, or not what its name says."""


class MissingDataError(NCSNError):
    """A data set that is not on this machine and may not, or could not, be downloaded."""


class NonFiniteLossError(NCSNError, FloatingPointError):
    """A training loss became infinite or not-a-number."""


class NCSNWarning(UserWarning):
    """Something that goes on otherwise than asked; the command line prints it in one line."""


class UnwritableError(NCSNError, OSError):
    """A file or folder that cannot be written: a full disk, a missing permission."""
