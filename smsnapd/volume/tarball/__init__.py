"""Tar: entries of a volume to pax headers and contents (`header`, `read`), and back.

The bytes are those of FORMAT.md, section 9: GNU tar extracts them.
"""
