"""What people would pick instead, each told to do the same: full, again, restore.

A peer keeps its repository and its secrets below a place of its own. Commands are shell lines, so that what
is compared is what a person would type; they run in the volume's parent.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers import ACCESS_KEY, SECRET_KEY

PASSWORD = "correct horse battery staple"
BUCKET = "bench"
KEYS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Peer:
    """One program: its shell lines, in which `$V` is the volume, `$P` the peer's place, `$T` the target.

    `again` is what a run after changes is; "" if that is a full. `needs` are the programs that must be there.
    """

    name: str
    needs: tuple[str, ...]
    full: str
    restore: str
    again: str = ""
    prepare: str = ":"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_there(self) -> bool:
        """Whether it can be run here."""
        return all(shutil.which(program) for program in self.needs)


def beside(smsnap: Path | None, program: str) -> Path:
    """`smsnap` or what lies beside it; None is that of this Python."""
    return (smsnap or Path(sys.executable).parent / "smsnap").parent / program


def smsnapd(smsnap: Path | None = None, s3: str = "") -> Peer:
    """Ours, on a directory, or at the endpoint `s3`; `smsnap` is the program, None for this Python's."""
    url = f"s3://{BUCKET}/smsnapd" if s3 else "file://$P/repo"
    more = f'region = "us-east-1"\\nendpoint_url = "{s3}"\\npath_style = true\\n' if s3 else ""
    config = (
        '[volume]\\npath = "\'"$V"\'"\\nname = "nb"\\n[encryption]\\npassphrase_file = "pass"\\n[state]\\n'
        f'dir = "state"\\n[repository]\\nurl = "\'"{url}"\'"\\n{more}'
    )
    run = f'"{beside(smsnap, "smsnap")}" -q -c "$P/smsnapd.toml"'
    return Peer(
        "smsnapd",
        (),
        prepare=f"printf '{config}' > \"$P/smsnapd.toml\" && {run} init > /dev/null",
        full=f"{run} backup > /dev/null",
        again=f"{run} backup > /dev/null",
        restore=f'{run} restore --target "$T" > /dev/null',
        environment=dict(KEYS) if s3 else {},
    )


def aws_sync(s3: str) -> Peer:
    """`aws s3 sync` at the endpoint `s3`: plain objects, neither compressed nor sealed."""
    sync = f'"{sys.executable}" "{beside(None, "aws")}" --endpoint-url {s3} s3 sync --only-show-errors'
    up = f'{sync} --no-follow-symlinks "$V" s3://{BUCKET}/aws'
    down = f'{sync} s3://{BUCKET}/aws "$T"'
    return Peer("aws s3 sync", (), full=up, again=up, restore=down, environment=dict(KEYS))


SEAL = 'openssl enc -pass file:"$P/pass"'
OPEN = f"{SEAL} -d"
RCLONE = 'RCLONE_CONFIG_C_PASSWORD=$(rclone obscure "$(cat "$P/pass")") rclone -q --links'

PEERS = (
    Peer(
        "restic",
        ("restic",),
        prepare='restic -q -r "$P/repo" init',
        full='restic -q -r "$P/repo" backup "$V"',
        again='restic -q -r "$P/repo" backup "$V"',
        restore='restic -q -r "$P/repo" restore latest --target "$T"',
        environment={"RESTIC_PASSWORD": PASSWORD, "RESTIC_CACHE_DIR": "cache"},
    ),
    Peer(
        "borg, zstd 3",
        ("borg",),
        prepare='borg init -e repokey-blake2 "$P/repo"',
        full='borg create -C zstd,3 "$P/repo::{now:%s.%f}" "$V"',
        again='borg create -C zstd,3 "$P/repo::{now:%s.%f}" "$V"',
        restore='cd "$T" && borg extract "$P/repo::$(borg list --last 1 --short "$P/repo")"',
        environment={"BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": "borg"},
    ),
    Peer(
        "rclone crypt",
        ("rclone",),
        full=f'{RCLONE} sync "$V" c:',
        again=f'{RCLONE} sync "$V" c:',
        restore=f'{RCLONE} copy c: "$T"',
        environment={
            "RCLONE_CONFIG_C_TYPE": "crypt",
            "RCLONE_CONFIG_C_REMOTE": "repo",
        },
    ),
    Peer(
        "tar | zstd | openssl",
        ("tar", "zstd", "openssl"),
        full=f'tar -C "$V" -S --xattrs -cf - . | zstd -q -1 -T0 | {SEAL} -aes-256-ctr -pbkdf2 > "$P/repo"',
        restore=f'{OPEN} -aes-256-ctr -pbkdf2 < "$P/repo" | zstd -qdc | tar -C "$T" --xattrs -xpf -',
    ),
    Peer(
        "the article: tar | pigz | openssl",
        ("tar", "pigz", "openssl"),
        full=f'tar -C "$V" -cf - . | pigz | {SEAL} -aes-256-cbc -iter 100000 > "$P/repo"',
        restore=f'{OPEN} -aes-256-cbc -iter 100000 < "$P/repo" | pigz -d | tar -C "$T" -xpf -',
    ),
)

COPY = Peer("cp -a", ("cp",), full="true", restore='cp -a "$V/." "$T"')
"""The floor of a restore."""


def prepared(peer: Peer, place: Path, volume: Path) -> dict[str, str]:
    """Make the peer's place; the environment of its commands."""
    place.mkdir(parents=True)
    (place / "pass").touch(0o600)
    (place / "pass").write_text(PASSWORD + "\n")
    environment = {**os.environ, "V": str(volume), "P": str(place), **peer.environment}
    for name, value in peer.environment.items():
        if value in ("cache", "borg", "repo"):
            environment[name] = str(place / value)
    return environment
