"""`smsnapd`: the daemon's command line."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Sequence
from contextlib import closing

import click

import smsnapd
from smsnapd.errors import SmsnapError


@click.command(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": None})
@click.version_option(smsnapd.__version__, prog_name="smsnapd")
@click.option("-c", "--config", metavar="FILE", help="Configuration file.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors alone.")
@click.option("-v", "--verbose", count=True, help="Log details too.")
def smsnapd_command(config: str | None, quiet: bool, verbose: int) -> int:
    """Watch the volume and commit recovery points, until SIGTERM.

    Runs in the foreground and logs to standard error; `smsnap install` makes a systemd service of it.

    \b
    SIGTERM, SIGINT   commit what is pending, within [schedule] stop, and end
    SIGHUP            read the configuration again; a wrong one is not used
    SIGUSR1           back up now

    Exit status: 0 stopped when asked to; 1 failed; 2 the configuration is wrong.
    """
    return run(config, -1 if quiet else verbose)


def run(config: str | None, verbosity: int) -> int:
    """Be the daemon."""
    from smsnapd.daemon import considerate
    from smsnapd.daemon.journal import set_up_service_logging
    from smsnapd.daemon.notify import Notifier
    from smsnapd.daemon.plan import load_plan
    from smsnapd.daemon.runtime import runtime_dir
    from smsnapd.daemon.service import Service, locked

    considerate.use_malloc(os.environ)
    # The watchdog's SIGABRT then leaves in the log where every thread was.
    faulthandler.enable()
    set_up_service_logging(verbosity, sys.stderr, os.environ)
    plan = load_plan(config)
    directory = runtime_dir(os.environ)
    considerate.make_way()
    notifier = Notifier.from_environment(os.environ)
    with locked(directory), closing(notifier):
        return Service(config, plan, directory, notifier, os.environ).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `smsnapd` with `arguments`, by default the process's; returns the exit status."""
    try:
        status = smsnapd_command.main(
            None if arguments is None else list(arguments), prog_name="smsnapd", standalone_mode=False
        )
        return int(status or 0)
    except SmsnapError as error:
        print(" ".join(f"smsnapd: {error}".split()), file=sys.stderr)
        return error.exit_status
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130


if __name__ == "__main__":
    sys.exit(main())
