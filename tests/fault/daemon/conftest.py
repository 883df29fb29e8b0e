"""What the trials share."""

from tests.e2e.conftest import cheap_passphrases

__all__ = ["cheap_passphrases"]
