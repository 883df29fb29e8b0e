"""The commit that a run follows: known since the run before or listed now, and mirrored by the index."""

from __future__ import annotations

from typing import NamedTuple

from smsnapd.engine.backup.request import BackupRequest
from smsnapd.engine.chain.index import (
    LostTreeError,
    Parent,
    begin_anew,
    bring_up,
    continued_elsewhere,
    cut_off,
)
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.given import Given
from smsnapd.engine.history import History
from smsnapd.errors import DamageError
from smsnapd.state import State


class Followed(NamedTuple):
    """The newest commit, None if there is none. A tree that is `lost` only a full can follow."""

    head: Parent | None
    lost: bool = False


def find_head(
    given: Given[BackupRequest], tenure: Tenure | None, state: State, root: bytes, filesystem: str
) -> Followed:
    """The newest commit. The index mirrors it afterwards, or is empty: if its tree is lost, or if it is
    damaged and a full was asked for.

    Without a tenure it is of the manifests as they are listed now, and may be another's soon. DamageError if
    it is damaged and no full was asked for.
    """
    if tenure is not None and (head := tenure.known_head(state.head, root, filesystem)):
        return Followed(head)
    history = History.load(given.repository, given.request.volume)
    if tenure is not None:
        tenure.listed(history)
    if text := cut_off(history, state):
        given.note(text)
    followed = _mirrored(given, history, state, root, filesystem)
    if tenure is not None:
        tenure.stands_at(followed.head)
    return followed


def _mirrored(
    given: Given[BackupRequest], history: History, state: State, root: bytes, filesystem: str
) -> Followed:
    try:
        if elsewhere := continued_elsewhere(history, state, filesystem):
            given.note(elsewhere)
        return Followed(bring_up(given.repository, history, state, root, filesystem))
    except LostTreeError as error:
        given.note(f"{error.why}: a new full is made")
        return Followed(begin_anew(given.repository, history, state), lost=True)
    except DamageError as error:
        if not given.request.full:
            hint = "recovery points from here on need a new full: smsnap backup --full"
            raise DamageError(error.what, error.why, hint) from error
        given.note(f"what the volume was backed up to before cannot be read ({error.why}): all is read again")
        return Followed(begin_anew(given.repository, history, state))
