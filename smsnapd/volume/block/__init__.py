"""The volume as a device: what its file system has allocated, what of it moved, and its bytes as they lie."""
