"""Who this machine is to AWS: the notebook, its credentials, its identity, its region."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from smsnapd.cli.doctor.findings import Check, Judged, fail, ok, skipped, warn
from smsnapd.cli.doctor.patient import Patient
from smsnapd.instance import IdentityUnknownError, caller_identity

_NO_S3: Final = "the repository is not in S3"
_NO_STS: Final = warn(
    "STS does not answer: that is so in a VPC without an endpoint for it", "nothing needs it"
)
_SOURCES: Final = {
    "iam-role": "the instance's role",
    "env": "the environment, which the daemon does not see",
    "shared-credentials-file": "~/.aws/credentials",
    "config-file": "~/.aws/config",
    "assume-role": "a role that ~/.aws/config names",
    "container-role": "the container's role",
    "custom-process": "a command that ~/.aws/config names",
}
_ROLE: Final = (
    "give the instance a role; elsewhere set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)


def notebook(patient: Patient) -> Iterator[Judged]:
    """Which notebook this is."""
    found = patient.notebook.examine()
    if found is None:
        yield skipped("this is no SageMaker notebook instance")
    else:
        yield ok(f"{found.name} in {found.region}, account {found.account}")


def credentials(patient: Patient) -> Iterator[Judged]:
    """Where AWS credentials come from."""
    if not patient.is_s3:
        yield skipped(_NO_S3)
    elif source := patient.sdk.examine().credentials:
        yield ok(f"from {_SOURCES.get(source, source)}")
    else:
        yield fail("there are no AWS credentials", _ROLE)


def identity(patient: Patient) -> Iterator[Judged]:
    """Whom AWS takes us for. In a VPC there is often no way to ask, and no need."""
    if not patient.is_s3:
        yield skipped(_NO_S3)
    elif not patient.is_aws and not _has_own_sts():
        yield skipped("the repository is not on AWS")
    elif not patient.sdk.use().credentials:
        yield skipped("there are no AWS credentials")
    elif not patient.region:
        yield skipped("the region is not known")
    else:
        yield _identity(patient.region)


def _identity(region: str) -> Judged:
    try:
        caller = caller_identity(region)
    except IdentityUnknownError as error:
        return warn(f"cannot {error.what}: {error.why}", error.hint)
    return ok(caller.arn)


def _has_own_sts() -> bool:
    """Whether the SDK is told of another STS than that of AWS."""
    return any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"))


def region(patient: Patient) -> Iterator[Judged]:
    """Which region requests are signed for, and who says so. Never a guess on AWS."""
    if not patient.is_s3:
        yield skipped(_NO_S3)
    elif known := patient.region:
        yield ok(f"{known}, from {_origin(patient)}")
    elif patient.is_aws:
        told = "the region of the bucket is not known"
        yield fail(told, 'write region = "…" under [repository], or set AWS_REGION')
    else:
        yield ok("none is configured: this server is asked as us-east-1")


def _origin(patient: Patient) -> str:
    if patient.config.use().repository.region:
        return "the configuration"
    if name := next((name for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if os.environ.get(name)), ""):
        return f"${name}"
    return "the notebook's ARN" if patient.settings.use().region else "~/.aws/config"


CHECKS: Final = (
    Check("account", "notebook", notebook),
    Check("account", "credentials", credentials),
    Check("account", "identity", identity, _NO_STS),
    Check("account", "region", region),
)
