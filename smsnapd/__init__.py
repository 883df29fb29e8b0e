"""smsnapd protects a notebook volume: full and incremental backups, restored to any moment."""

__version__ = "0.1.0"
