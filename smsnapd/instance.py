"""The notebook: its name, region and account, from the file that SageMaker lays on the instance.

And who this machine is to AWS: where the SDK finds credentials, and what STS says of them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smsnapd.errors import SmsnapError

METADATA = Path("/opt/ml/metadata/resource-metadata.json")
_ARN = re.compile(r"arn:[^:]+:sagemaker:([a-z0-9-]+):([0-9]*):.+")
_CREDENTIALS = "give the instance a role, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_ENDPOINT = "nothing needs STS; to have it in a VPC, add an interface endpoint for com.amazonaws.REGION.sts"
_SERVER_ERROR = 500
_ARN_PARTS = 6
_HINT = "set [volume] name and [repository] region in the configuration"


class InstanceError(SmsnapError):
    """What the instance says of itself cannot be understood."""


class IdentityUnknownError(InstanceError):
    """STS could not be asked: from a VPC without an endpoint for it, say. The credentials may be good."""


class Notebook(NamedTuple):
    """A notebook instance: its name, and the region and account of its ARN."""

    name: str
    region: str
    account: str


class SdkSetup(NamedTuple):
    """What the AWS SDK finds by itself: the source of its credentials and a region, each "" if there is none.

    Sources in its own words: `env`, `shared-credentials-file`, `assume-role`, `container-role`, `iam-role`.
    """

    credentials: str
    region: str


class Caller(NamedTuple):
    """Who the credentials belong to: the account, and the ARN of the user or of the role's session."""

    account: str
    arn: str


def read_notebook(metadata: Path = METADATA) -> Notebook | None:
    """The notebook that this machine is; None where there is no metadata: it is none.

    Raises `InstanceError` if the file is there and is not what SageMaker writes: an object with
    `ResourceArn` and `ResourceName`.
    """
    what = f"learn the notebook's name from {metadata}"
    try:
        document = json.loads(metadata.read_bytes())
        name, arn = document["ResourceName"], document["ResourceArn"]
        match = _ARN.fullmatch(arn)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InstanceError(what, error.strerror or str(error), _HINT) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InstanceError(what, "it has no ResourceName and ResourceArn", _HINT) from error
    if match is None or not isinstance(name, str):
        raise InstanceError(what, f"{arn!r} is no ARN of a notebook", _HINT)
    return Notebook(name, match[1], match[2])


def notebook_tags(metadata: Path = METADATA, timeout_s: float = 5.0) -> dict[str, str]:
    """The tags of the notebook that this machine is, by the SageMaker API; none where it is no notebook.

    Needs a way to the API and sagemaker:ListTags. One try; `timeout_s` holds for connecting to an address,
    and for each answer. Raises `InstanceError` if the tags cannot be had, or as `read_notebook` does.
    """
    notebook = read_notebook(metadata)
    if notebook is None:
        return {}
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(connect_timeout=timeout_s, read_timeout=timeout_s, retries={"total_max_attempts": 1})
    arn = json.loads(metadata.read_bytes())["ResourceArn"]
    try:
        session = boto3.session.Session()
        with contextlib.closing(session.client("sagemaker", notebook.region, config=config)) as client:
            pages = client.get_paginator("list_tags").paginate(ResourceArn=arn)
            return {str(tag["Key"]): str(tag["Value"]) for page in pages for tag in page["Tags"]}
    except (BotoCoreError, ClientError, ValueError) as error:
        hint = "it needs a way to the SageMaker API, and sagemaker:ListTags in the notebook's role"
        raise InstanceError("read the notebook's tags", " ".join(str(error).split()), hint) from error


def default_volume_name(notebook: Notebook | None, host: str) -> str:
    """The name of a volume that was given none: the notebook's, else the host's, made to fit.

    What the grammar of FORMAT.md, section 2, does not allow becomes a hyphen.
    """
    name = notebook.name if notebook else host.split(".", maxsplit=1)[0]
    fitting = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:63]
    return fitting or "volume"


def sdk_setup() -> SdkSetup:
    """Where the SDK finds credentials and a region. Asks the instance's metadata service if it comes to that.

    Raises `InstanceError` if what is configured for it cannot be used.
    """
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.session.Session()
        found = session.get_credentials()
        return SdkSetup("" if found is None else found.method or "unknown", session.region_name or "")
    except BotoCoreError as error:
        hint = "check AWS_PROFILE, ~/.aws/config and ~/.aws/credentials"
        raise InstanceError("find AWS credentials", " ".join(str(error).split()), hint) from error


def caller_identity(region: str, timeout_s: float = 3.0) -> Caller:
    """Whom STS takes us for. It needs no permission, and a way to the region's STS endpoint.

    One try; `timeout_s` holds for connecting to an address, and for the answer. Raises `InstanceError` if STS
    refuses the credentials or there are none, `IdentityUnknownError` if it could not be asked.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    what = f"ask STS in {region} who this machine is"
    config = Config(
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    try:
        with contextlib.closing(boto3.session.Session().client("sts", region, config=config)) as client:
            answer = client.get_caller_identity()
    except ClientError as error:
        raise _refused(what, error.response) from error
    except NoCredentialsError as error:
        raise InstanceError(what, "there are no AWS credentials", _CREDENTIALS) from error
    except (BotoCoreError, ValueError) as error:
        raise IdentityUnknownError(what, " ".join(str(error).split()), _ENDPOINT) from error
    return Caller(str(answer["Account"]), str(answer["Arn"]))


def _refused(what: str, response: Mapping[str, Any]) -> InstanceError:
    """The error for an error answer of STS."""
    code, message = (str(response.get("Error", {}).get(key, "")) for key in ("Code", "Message"))
    why = " ".join(f"{code}: {message}".split()) if code else "the answer was not one of STS"
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # An endpoint's policy may deny what no policy of a user can.
    if code in ("", "AccessDenied", "AccessDeniedException") or status >= _SERVER_ERROR:
        return IdentityUnknownError(what, why, _ENDPOINT)
    return InstanceError(what, why, _CREDENTIALS)


def kms_encrypt(key: str, plaintext: bytes, context: Mapping[str, str]) -> bytes:
    """`plaintext` under the KMS key of this ARN, bound to an encryption context; as `kms_decrypt` raises."""
    answer = _ask_kms(key, "encrypt", KeyId=key, Plaintext=plaintext, EncryptionContext=dict(context))
    return bytes(answer["CiphertextBlob"])


def kms_decrypt(key: str, ciphertext: bytes, context: Mapping[str, str]) -> bytes:
    """What `kms_encrypt` encrypted with this key and context, by this key and no other.

    Needs kms:Decrypt, and a way to the region's KMS endpoint. Raises `InstanceError` if it is refused or KMS
    cannot be asked.
    """
    answer = _ask_kms(key, "decrypt", KeyId=key, CiphertextBlob=ciphertext, EncryptionContext=dict(context))
    return bytes(answer["Plaintext"])


def _ask_kms(key: str, operation: str, **parameters: object) -> Mapping[str, Any]:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    what = f"{operation} the identity with the KMS key {key}"
    parts = key.split(":")
    if parts[:1] != ["arn"] or parts[2:3] != ["kms"] or len(parts) < _ARN_PARTS:
        raise InstanceError(what, "it is no ARN of a KMS key", "give it as arn:aws:kms:REGION:ACCOUNT:key/ID")
    config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 3, "mode": "standard"})
    try:
        with contextlib.closing(boto3.session.Session().client("kms", parts[3], config=config)) as client:
            answer: Mapping[str, Any] = getattr(client, operation)(**parameters)
            return answer
    except ClientError as error:
        said = error.response.get("Error", {})
        why = " ".join(f"{said.get('Code', '')}: {said.get('Message', '')}".split())
        hint = f"the role needs kms:{operation.capitalize()} on it, and the slot its repository and volume"
        raise InstanceError(what, why, hint) from error
    except (BotoCoreError, ValueError) as error:
        hint = (
            "it needs a way to KMS (in a VPC, an endpoint for it); else use a passphrase or the recovery key"
        )
        raise InstanceError(what, " ".join(str(error).split()), hint) from error
