"""Names of sources as they may be shown: cameras' addresses often carry a password."""

from __future__ import annotations

import re

# Up to the last @ before the path: careless passwords hold one, too.
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]+@")
# A password with a slash in it, which should have been %2F: what follows the colon is no port.
_CARELESS = re.compile(r"(?<=://)[^/?#\s:@\[]*:(?!\d{1,5}(?:[/?#\s]|$))\S*@")
_SECRETS = re.compile(
    r"([?&](?:pass(?:word|wd|phrase)?|pwd|pw|token|secret|(?:api_?)?key|auth|signature|sig)=)[^&#\s]*",
    re.IGNORECASE,
)


def without_secrets(source: str) -> str:
    """A source's name, or any text about it, without the passwords that camera URLs often carry."""
    return _SECRETS.sub(r"\1***", _CARELESS.sub("", _CREDENTIALS.sub("", source)))


def shown_location(source: str) -> str:
    """As `without_secrets`, and fit for UTF-8 whatever bytes a file's name has."""
    return without_secrets(source).encode(errors="backslashreplace").decode()
