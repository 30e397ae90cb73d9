"""What can go wrong with the state database, beyond a full disk (`errors.StorageFull`)."""

from __future__ import annotations

import sqlite3

from varvel.errors import StorageFull, VarvelError


class StateUnavailable(VarvelError):
    """The state database cannot be used; see the server's log."""

    status = 503


class Closed(StateUnavailable):
    """The server is stopping."""


def is_storage_trouble(problem: BaseException) -> bool:
    """Whether SQLite lost its footing (full disk, I/O error): nothing of the open transaction can be kept."""
    if not isinstance(problem, sqlite3.Error):
        return False
    code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def as_varvel_error(problem: BaseException) -> BaseException:
    """`StorageFull` for a full disk, `StateUnavailable` for other I/O errors, anything else as it is."""
    if not is_storage_trouble(problem):
        return problem
    code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
    error: VarvelError = StorageFull() if code == sqlite3.SQLITE_FULL else StateUnavailable(str(problem))
    error.__cause__ = problem
    return error
