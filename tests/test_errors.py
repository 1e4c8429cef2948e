"""Errors that the command line prints: one family, and messages that say what to do."""

import pytest

from ncsn_core.errors import (
    CorruptFileError,
    MissingDataError,
    NCSNError,
    NonFiniteLossError,
    UnknownNameError,
)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (UnknownNameError, ValueError),
        (NonFiniteLossError, FloatingPointError),
        (CorruptFileError, Exception),
        (MissingDataError, Exception),
    ],
)
def test_one_family_that_also_fits_the_builtin_errors(error, builtin):
    assert issubclass(error, NCSNError)
    assert issubclass(error, builtin)


def test_unknown_name_lists_the_known_ones():
    error = UnknownNameError("preset", "mnits", ["mnist", "cifar10"])
    assert str(error) == "unknown preset 'mnits'; known: mnist, cifar10"


def test_unknown_name_may_carry_a_hint():
    error = UnknownNameError("checkpoint", "x", ["mnist"], "A folder works too")
    assert str(error).endswith("known: mnist. A folder works too")


def test_unknown_name_says_when_there_are_none():
    assert str(UnknownNameError("bundle", "x", [])).endswith("known: none")
