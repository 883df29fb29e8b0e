"""Import: what comes from elsewhere becomes a full snapshot, as it streams by.

`tree` grows the tree as GNU tar would on a disk, member by member, in a file and not in memory; `contents`
cuts what files hold into chunks; `recording` makes entries of it with their headers, in catalog order; `run`
takes the lease, and commits. Whatever can be iterated over as `Member`s and read is taken in.
"""
