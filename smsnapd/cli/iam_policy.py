"""`smsnap iam-policy`: what AWS must allow, no more, as a document that `aws iam` and `aws s3api` take."""

from __future__ import annotations

import click

from smsnapd.cli import output
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.errors import UsageError
from smsnapd.store.iam_policy import ROLES, Grant, Policy, Role, bucket_policy, place_of, role_policy

EXAMPLES = """
smsnap iam-policy writer > policy.json
aws iam put-role-policy --role-name ROLE --policy-name smsnapd \\
    --policy-document file://policy.json
smsnap iam-policy pruner --all-volumes --kms-key arn:aws:kms:eu-west-1:123456789012:key/ID
smsnap iam-policy --bucket-policy --principal arn:aws:iam::123456789012:role/pruner
"""
REPORT = """
the same document: {"Version": "2012-10-17", "Statement": [{"Sid", "Effect", "Action",
 "Resource", "Condition"}]}, of a bucket policy each with "Principal"
"""


@verb("iam-policy", examples=EXAMPLES, report=REPORT)
@click.argument("role", required=False, type=click.Choice(ROLES))
@click.option("--all-volumes", is_flag=True, help="For every volume of the repository, not one.")
@click.option("--kms-key", default="", metavar="ARN", help="The key that the bucket encrypts with (SSE-KMS).")
@click.option("--versions", is_flag=True, help="Old versions of objects too, in a versioned bucket.")
@click.option("--object-lock", "lock", is_flag=True, help="writer, pruner: lock objects too; as configured.")
@click.option("--init", "may_init", is_flag=True, help="writer: `smsnap init` too, until it is done.")
@click.option("--bucket-policy", "for_bucket", is_flag=True, help="A policy of the bucket, for everybody.")
@click.option("--principal", "principals", multiple=True, metavar="ARN", help="Role or user that may prune.")
def iam_policy(
    role: Role | None,
    all_volumes: bool,
    kms_key: str,
    versions: bool,
    lock: bool,
    may_init: bool,
    for_bucket: bool,
    principals: tuple[str, ...],
) -> int:
    """Print the least IAM policy of a role on the repository, which must be in S3.

    For this machine's volume, or that of --volume: its objects, `repository` and `keys/`. Names and
    sizes of all objects of the repository can be listed. Nothing is asked of AWS.

    \b
    writer    backs up: adds objects that are not there (its puts must carry
              If-None-Match), replaces nothing but the lease (If-Match), deletes
              nothing, even if another policy of the role allows it. Enough
              for `smsnap doctor` and all that reads, too; not for
              `smsnap init`: that takes --init, or somebody else.
    pruner    a writer that also deletes: in place of writer, where the daemon
              prunes. Old versions in a versioned bucket only with --versions.
    restorer  lists and reads. What it can decrypt is for its key to say.
    auditor   `smsnap check` without --read-data: reads no chunk. S3 has no right
              to see a chunk's head that is not one to read it: listings tell
              sizes. Small changes lie inside of manifests, sealed.

    Without --all-volumes, `smsnap check` needs --volume too. A machine of several roles takes the policy of
    pruner. With --bucket-policy: no overwriting, no deleting but by --principal, no plain HTTP, whoever asks;
    it grants nothing.
    """
    session = Session.current()
    place = place_of(session.settings.url, session.settings.region)
    if for_bucket:
        _refuse_with_bucket(role, all_volumes, kms_key, lock, may_init)
        output.document(bucket_policy(place, principals, versions=versions))
        return 0
    if role is None:
        hint = f"name a role ({', '.join(ROLES)}), or give --bucket-policy"
        raise UsageError("make an IAM policy", "it is not said for whom", hint)
    if principals:
        raise UsageError(
            "make an IAM policy", "--principal is for a bucket policy", "give --bucket-policy too"
        )
    volume = "" if all_volumes else session.own_volume
    lock = lock or (bool(session.settings.object_lock) and role in ("writer", "pruner"))
    policy = role_policy(place, Grant(role, volume, kms_key, versions, lock, may_init))
    _show(session, policy, volume)
    return 0


def _refuse_with_bucket(role: Role | None, *others: bool | str) -> None:
    """A bucket policy is for everybody and all volumes."""
    if role is not None or any(others):
        why = "a bucket policy is for everybody, and all of the repository"
        raise UsageError("make an IAM policy", why, "give it --principal and --versions only")


def _show(session: Session, policy: Policy, volume: str) -> None:
    """The document; beside it, for people, whose it is: the default is this machine's."""
    if not (session.options.json or session.options.quiet):
        output.line(
            f"For {f'volume {volume}' if volume else 'all volumes'} of {session.settings.url}", aside=True
        )
    output.document(policy)
