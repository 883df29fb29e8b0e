"""The line of an IAM policy that a refused request lacks (IAM JSON policy elements reference)."""

from __future__ import annotations

import json
import re


def policy_line(action: str, url: str, region: str) -> str:
    """The statement that allows `action` ("s3:PutObject") for the repository at `url` (s3://bucket/prefix)."""
    bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
    resource = f"arn:{_partition(region)}:s3:::{bucket}"
    statement: dict[str, object] = {"Effect": "Allow", "Action": action, "Resource": resource}
    if action != "s3:ListBucket":
        statement["Resource"] = f"{resource}/{prefix}/*" if prefix else f"{resource}/*"
    elif prefix:
        statement["Condition"] = {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}}
    return json.dumps(statement)


def _partition(region: str) -> str:
    """The part of AWS that a region belongs to (AWS General Reference, Amazon Resource Names)."""
    for start, partition in (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov"), ("eusc-", "aws-eusc")):
        if region.startswith(start):
            return partition
    return "aws"


def action_in(hint: str) -> str:
    """The S3 action that an error's hint asks to allow, "" if it asks for something else."""
    match = re.match(r"allow (s3:[A-Za-z]+) ", hint)
    return match[1] if match else ""
