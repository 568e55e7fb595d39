"""Errors that a user can act on: one clear sentence that says what to do.

The command line prints them as ``emlab: error: <message>`` and exits with ``exit_code``; nothing
else in the package is allowed to reach a user as a traceback.
"""


class EmlabError(Exception):
    """Base class of all errors that emlab raises on purpose."""

    exit_code = 2


class InputError(EmlabError, ValueError):
    """The user gave something unusable: a wrong name, option, file or array."""


class DataUnavailableError(EmlabError):
    """A data set or a checkpoint is neither on this machine nor reachable."""

    exit_code = 3


class IntegrityError(EmlabError):
    """A file is there, but its bytes are not the ones that the registry or the card promises."""

    exit_code = 3
