"""The entry: picks the verb, imports it, and turns errors into one line and an exit status."""

from __future__ import annotations

import importlib
import keyword
import os
import sys
import traceback
from collections.abc import Sequence

import click

import smsnapd
from smsnapd.cli.options import Options, Unforeseen, shared_options
from smsnapd.cli.output import OutputClosed, complain, flush
from smsnapd.errors import SmsnapError, UsageError

VERBS = {
    "init": ("init", "Make the repository and its keys; print the recovery key once."),
    "backup": ("backup", "Store one snapshot now."),
    "snapshots": ("snapshots", "List the recovery points."),
    "ls": ("browse", "List what a snapshot holds."),
    "diff": ("diff", "Show what differs between two recovery points, or one and the volume."),
    "find": ("find", "Find files by name in all recovery points, with every version."),
    "cat": ("browse", "Write a file of a snapshot to standard output."),
    "mount": ("mount", "Show all recovery points as directories, read-only, until unmounted."),
    "undelete": ("undelete", "Show what was lost lately; bring it back beside what is there."),
    "restore": ("restore", "Bring back all, or some paths, as of any recovery point."),
    "export": ("export", "Write a snapshot as a tar archive, sealed for openssl, or as plain files."),
    "import": ("import_", "Take in a tarball, a dd image or an `aws s3 sync` copy as a snapshot."),
    "copy": ("copy", "Copy recovery points to another repository, sealed for its recipients."),
    "check": ("check", "Look for damage in the repository."),
    "drill": ("drill", "Restore a sample, or everything, for a trial; time and compare it."),
    "prune": ("prune", "Let recovery points go by the policy, remove what none refers to."),
    "tag": ("tag", "Give recovery points tags: what has one stays."),
    "environment": ("environment", "Say what is needed to make the environments again; make them."),
    "cost": ("cost", "Estimate what a month of an S3 repository costs."),
    "status": ("status", "Show what the daemon is doing, how old the last recovery point is."),
    "doctor": ("doctor", "Say what is wrong with this machine's set-up, and how to mend it."),
    "iam-policy": ("iam_policy", "Print the least IAM policy of a writer, pruner, restorer or auditor."),
    "install": ("install", "Make the daemon a systemd service, and start it."),
    "uninstall": ("install", "Stop the daemon and remove its service."),
    "key": ("key", "Show the repository's keys; write the daemon's key file."),
    "demo": ("demo", "Show the whole story on a throw-away volume."),
}
"""Verb: the module of this package that has it, and its line in the help."""

INTERRUPTED = 130


class Verbs(click.Group):
    """A group whose commands are imported when they are used, so that `smsnap --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order in which people meet them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"smsnapd.cli.{VERBS[cmd_name][0]}")
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(module, f"{name}_" if keyword.iskeyword(name) else name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs' lines, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": None})
@click.version_option(smsnapd.__version__, prog_name="smsnap")
@shared_options
def cli() -> None:
    """Protect a directory, and bring back any moment of it.

    Options may stand before the verb or behind it. `smsnap VERB --help` shows examples.

    \b
    Exit status: 0 done; 1 failed; 2 usage; 3 done but incomplete (files missed,
    named); 10 no repository; 11 locked by another writer; 12 wrong passphrase
    or key; 13 damage found; 130 interrupted.

    \b
    Shell completion:
      eval "$(_SMSNAP_COMPLETE=bash_source smsnap)"    (or zsh_source, fish_source)
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `smsnap` with `arguments`, by default the process's; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = Options()
    try:
        status = cli.main(given, prog_name="smsnap", standalone_mode=False, obj=options)
        flush()
        return int(status or 0)
    except SmsnapError as error:
        return _report(error, options, given)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        return _report(_usage(error), options, given)
    except OutputClosed:
        _silence_stdout()
        return 1
    except KeyboardInterrupt:
        return _interrupted()
    except click.Abort:  # what click makes of a KeyboardInterrupt
        return _interrupted()
    except Exception as error:
        return _crashed(error, options, given)


def _usage(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "smsnap"
    why = " ".join(error.format_message().split()).rstrip(".")
    return UsageError("understand the command line", why[:1].lower() + why[1:], f"see {command} --help")


def _report(error: SmsnapError, options: Options, arguments: Sequence[str]) -> int:
    if options.verbose:
        _trace(error)
    complain(error, as_json=options.json or "--json" in arguments)
    return error.exit_status


def _crashed(error: Exception, options: Options, arguments: Sequence[str]) -> int:
    """An exception that no one foresaw."""
    cause = error.__cause__ if isinstance(error, Unforeseen) else error
    if options.verbose and cause is not None:
        _trace(cause)
    hint = "" if options.verbose else "run with -v for the traceback"
    shown = SmsnapError("finish", f"unexpected {type(cause).__name__}: {cause}", hint)
    complain(shown, as_json=options.json or "--json" in arguments, name=type(cause).__name__)
    return shown.exit_status


def _trace(error: BaseException) -> None:
    from smsnapd.telemetry.plain import plain_lines
    from smsnapd.telemetry.secrets import redacted

    text = redacted("".join(traceback.format_exception(error)))
    print(plain_lines(text), end="", file=sys.stderr)


def _interrupted() -> int:
    print("smsnap: interrupted", file=sys.stderr)
    return INTERRUPTED


def _silence_stdout() -> None:
    """Keep the interpreter from flushing into the closed pipe when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
