"""Hides credentials in URLs before they reach a message or a record. Knows nothing of what the URLs are for."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(?<=://)[^/\s]*@")
_SECRET_OPTION = re.compile(r"([?&][^=&\s]*(?:password|passwd|pwd|token|secret|key)[^=&\s]*=)[^&\s]*", re.IGNORECASE)


def masked_url(text: str) -> str:
    """`text` with the credentials of every URL in it replaced by ***, safe to print and to store.

    Masked are the part between `://` and `@`, and the value of every query option whose name says that it is secret.
    """
    return _SECRET_OPTION.sub(r"\1***", _USERINFO.sub("***@", text))
