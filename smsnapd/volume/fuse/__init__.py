"""A read-only file system in user space: the port (`tree`) and its mount (`mounting`), over mfusepy.

The only user of the FUSE binding, which is an extra (`pip install smsnapd[mount]`) and loaded on demand.
"""

from smsnapd.volume.fuse.mounting import FuseOptions, check_available, mounted, serve
from smsnapd.volume.fuse.tree import Attributes, Name, OpenFile, ReadOnlyTree

__all__ = [
    "Attributes",
    "FuseOptions",
    "Name",
    "OpenFile",
    "ReadOnlyTree",
    "check_available",
    "mounted",
    "serve",
]
