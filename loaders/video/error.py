"""What ends a command with a message instead of a traceback."""

from __future__ import annotations


class TrocarError(Exception):
    """Something that users can mend; the message names the path or the key, the value, what is accepted, and the fix."""

    status = 1  # of a command that it ends


class UsageError(TrocarError):
    """Asked for wrongly: nothing has been begun."""

    status = 2
