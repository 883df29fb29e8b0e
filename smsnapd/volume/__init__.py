"""The volume: which mount carries it, what lies on it, and reading it faithfully.

`mounts` finds the file system, `tree` opens names without ever following one, `scan` lists everything in
catalog order, `attributes` reads extended attributes and owners' names, `still` holds the file system
read-only for as long as a reader needs it, `tarball` makes and applies tar streams.
"""
