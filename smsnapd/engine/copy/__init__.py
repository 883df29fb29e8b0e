"""Copying recovery points to another repository, sealed anew for its recipients, without a restore between.

`plan` says which and in what form; `carrying` moves chunks and remembers what became of each; `run` takes the
other repository's lease and commits one recovery point after the other.
"""
