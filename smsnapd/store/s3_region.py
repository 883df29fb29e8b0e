"""Which region requests are signed for. Never a guess on AWS."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from smsnapd.errors import StoreError
from smsnapd.store.base import StoreSettings


def region_for(settings: StoreSettings, known: str | None, what: str) -> str:
    """The region: configured, or from the environment or profile (`known`). `what` is for messages.

    Raises a permanent `StoreError` if nothing says it. Other servers take any; us-east-1 is what they are
    set to by default.
    """
    region = settings.region or os.environ.get("AWS_REGION") or known
    if region:
        return region
    host = urlsplit(settings.endpoint_url).hostname or "amazonaws.com"
    if host.endswith(("amazonaws.com", "amazonaws.com.cn", "amazonaws.eu")):
        hint = "set region in the configuration, or AWS_REGION"
        raise StoreError(what, "the region of the bucket is not known", hint)
    return "us-east-1"
