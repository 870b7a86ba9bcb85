"""API keys: made once, kept as digests. Knows no wire.

A key is 256 random bits, so its plain SHA-256 gives nothing away and needs no salt.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from agent.checked_settings import checked, from_mapping
from groundstream.checks import check_text
from groundstream.errors import SettingsError

PREFIX = "gsk_"
_KEY_BYTES = 32
_PRIVATE = 0o600


@checked
@dataclass(frozen=True)
class ApiKey:
    """One line of the file."""

    name: str
    """Whose key it is, for those who keep the file."""
    tenant: str
    sha256: str
    """Of the key, in hexadecimal."""


def digest_of(key: str) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_api_keys(content: bytes) -> Mapping[str, ApiKey]:
    """Keys by digest.

    Raises:
        ValueError: not a YAML list of keys.
        SettingsError: an entry with a field missing or unknown.
    """
    try:
        entries = yaml.safe_load(content)
    except yaml.YAMLError:
        # The parser's message quotes the file.
        raise ValueError("not YAML") from None
    if not isinstance(entries, list):
        raise ValueError("must hold a list of keys; make one with `groundstream key`")
    keys = [from_mapping(ApiKey, entry, f"[{number}]") for number, entry in enumerate(entries)]
    return {key.sha256.lower(): key for key in keys}


def add_api_key(path: Path, *, name: str, tenant: str) -> str:
    """Write a new key's digest to the end of a file, which is made if need be; returns the key.

    Raises:
        SettingsError: the file cannot be written, or would not be a list of keys; or the tenant is
            empty, or it or the name is not in UTF-8.
    """
    if not tenant:
        raise SettingsError("the tenant is empty; say whose key this is")
    check_text(tenant, "the tenant", SettingsError)
    check_text(name, "the name", SettingsError)
    key = PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    entry = asdict(ApiKey(name, tenant, digest_of(key)))
    line = yaml.safe_dump([entry], sort_keys=False).encode()
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, _PRIVATE)
        with os.fdopen(handle, "r+b", buffering=0) as file:
            known = file.read() or b""
            if known and not known.endswith(b"\n"):
                line = b"\n" + line  # Editors differ about the end of the last line.
            read_api_keys(known + line)
            file.write(line)
    except (ValueError, SettingsError) as error:
        raise SettingsError(f"{path} is no list of keys to be added to: {error}") from None
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from error
    return key
