"""The notebook: its name, region and account, from the file that SageMaker lays on the instance."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from smsnapd.errors import SmsnapError

METADATA = Path("/opt/ml/metadata/resource-metadata.json")
_ARN = re.compile(r"arn:[^:]+:sagemaker:([a-z0-9-]+):([0-9]*):.+")
_HINT = "set [volume] name and [repository] region in the configuration"


class InstanceError(SmsnapError):
    """What the instance says of itself cannot be understood."""


class Notebook(NamedTuple):
    """A notebook instance: its name, and the region and account of its ARN."""

    name: str
    region: str
    account: str


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


def default_volume_name(notebook: Notebook | None, host: str) -> str:
    """The name of a volume that was given none: the notebook's, else the host's, made to fit.

    What the grammar of FORMAT.md, section 2, does not allow becomes a hyphen.
    """
    name = notebook.name if notebook else host.split(".", maxsplit=1)[0]
    fitting = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:63]
    return fitting or "volume"
