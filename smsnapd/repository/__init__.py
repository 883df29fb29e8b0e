"""A repository: keys opened, chunks in and out, manifests committed and listed, the lease."""

from smsnapd.repository.access import Created, Credentials, Repository

__all__ = ["Created", "Credentials", "Repository"]
