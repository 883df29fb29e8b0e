"""`smsnap doctor`: what is wrong with this machine's set-up, and how to mend it.

`findings` says what a finding is and runs the checks, each for itself and for a bounded time; `patient` is
what they look at; `machine`, `configuration`, `account`, `repository`, `volume` and `service` are the checks.
"""

from smsnapd.cli.doctor.verb import doctor

__all__ = ["doctor"]
