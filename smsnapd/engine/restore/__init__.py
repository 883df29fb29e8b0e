"""Restoring: the tree of a recovery point, or a part of it, written to a target; and the drill of that."""
