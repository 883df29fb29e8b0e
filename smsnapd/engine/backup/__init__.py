"""Backing up files: what has changed is found, stored on every core, recorded and committed."""
