"""What `groundstream doctor` looks at before the service is started, and what to do about it.

Each check is a function that returns a finding and never raises. Starts nothing, writes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import os
import platform
import re
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis.asyncio
from cryptography import x509
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from redis.exceptions import RedisError

from agent.hub import HubName, cached, left_bytes
from agent.model_directory import find_model
from agent.settings import ServiceSettings, load_serve_config, with_environment
from deployments.front_end.access import open_access
from deployments.local.supervisor import check_port_is_free
from groundstream.errors import AgentError, SettingsError

_LEAST_FREE_BYTES = 2_000_000_000
_LEAST_MEMORY_BYTES = 3_000_000_000
"""The service with the embedded model holds 2.8 GB (docs/benchmarks.md)."""
_REDIS_TIMEOUT_S = 2.0
_WARN_DAYS = 14
_RAY_SHM_MARGIN_BYTES = 50_000_000
_DISTRIBUTION = "groundstream"


@dataclass(frozen=True)
class Finding:
    """What one check saw."""

    subject: str
    is_well: bool
    words: str
    """What is there; where something is wrong, also what to do."""

    @property
    def line(self) -> str:
        """For a terminal."""
        return f"{'ok   ' if self.is_well else 'WRONG'} {self.subject:<10} {self.words}"


def examine(config: Path, **chosen: str | None) -> list[Finding]:
    """All findings, in the order in which things are needed.

    Args:
        config: a settings file.
        chosen: keys of the settings, with values in place of the file's; None: the file's.
    """
    findings = [_python(), _packages()]
    try:
        loaded = load_serve_config(config)
        settings = with_environment(loaded.service, os.environ)
        given = {key: value for key, value in chosen.items() if value is not None}
        settings = dataclasses.replace(settings, **given)  # type: ignore[arg-type]
    except SettingsError as error:
        return [*findings, Finding("settings", False, f"{error}; docs/operations.md names them")]
    findings.append(Finding("settings", True, str(config)))
    return [*findings, *_with_settings(settings)]


def _with_settings(settings: ServiceSettings) -> Iterator[Finding]:
    yield _memory()
    yield _shared_memory(settings.local_cluster.object_store_bytes)
    yield _disk()
    yield from _model(settings)
    yield _device(settings.device)
    server, observe = settings.server, settings.observe
    yield _address(settings)
    yield _port("port", server.host, server.port, "--port")
    if observe.metrics_port is not None:
        key = "observe.metrics_port"
        yield _port("metrics", observe.metrics_host, observe.metrics_port, key)
    yield _tls(settings)
    yield _access(settings)
    yield _redis(settings.cache.url)


def _python() -> Finding:
    version = platform.python_version()
    wanted = _metadata().get("Requires-Python", "")
    if version not in SpecifierSet(wanted):
        return Finding("python", False, f"{version}, needed is {wanted}; make a new environment")
    return Finding("python", True, version)


def _packages() -> Finding:
    wanted = [Requirement(line) for line in _metadata().get("Requires-Dist", [])]
    if not wanted:
        words = "groundstream itself is not installed here; `pip install --no-deps --editable .`"
        return Finding("packages", False, words)
    wrong = [said for need in wanted if _is_meant(need) and (said := _unmet(need))]
    if wrong:
        words = f"{'; '.join(wrong)}; `pip install -r requirements.lock`"
        return Finding("packages", False, words)
    return Finding("packages", True, f"{len(wanted)} as required")


def _metadata() -> dict[str, Any]:
    """Of the installed package; nothing where a checkout runs uninstalled."""
    try:
        found = importlib.metadata.metadata(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {
        "Requires-Python": found["Requires-Python"],
        "Requires-Dist": found.get_all("Requires-Dist", []),
    }


def _is_meant(need: Requirement) -> bool:
    """Whether a plain installation needs it; optional parts are those with an extra."""
    return need.marker is None or need.marker.evaluate({"extra": ""})


def _unmet(need: Requirement) -> str:
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{need.name} is missing"
    if not need.specifier.contains(version, prereleases=True):
        return f"{need.name} is {version}, needed is {need.specifier}"
    return ""


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    words = f"{free / 1e9:.1f} GB available"
    if free < _LEAST_MEMORY_BYTES:
        needed = f"the service needs {_LEAST_MEMORY_BYTES / 1e9:.0f} GB"
        return Finding("memory", False, f"{words}; {needed}, so stop other programs")
    return Finding("memory", True, words)


def _shared_memory(needed_bytes: int) -> Finding:
    """Ray keeps its object store there; with too little it falls back to slow files."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("/dev/shm", True, "not on this system; Ray uses files")
    free = shutil.disk_usage(folder).free
    words = f"{free / 1e6:.0f} MB free, {needed_bytes / 1e6:.0f} MB needed"
    if free < needed_bytes + _RAY_SHM_MARGIN_BYTES:
        advice = "start the container with a larger --shm-size, or lower"
        return Finding("/dev/shm", False, f"{words}; {advice} local_cluster.object_store_bytes")
    return Finding("/dev/shm", True, words)


def _disk() -> Finding:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    words = f"{free / 1e9:.1f} GB free in {folder}"
    if free < _LEAST_FREE_BYTES:
        return Finding("disk", False, f"{words}; make room, or set TMPDIR to a larger disk")
    return Finding("disk", True, words)


def _model(settings: ServiceSettings) -> Iterator[Finding]:
    name = HubName.parse(settings.model)
    try:
        if name is not None and cached(name) is None:
            yield _to_fetch(name)
            return
        model = find_model(settings.model, proposal_network=settings.proposal_network)
    except (AgentError, OSError) as error:
        yield Finding("model", False, str(error))
        return
    weights = list(model.path.glob("**/*.safetensors"))
    if not weights:
        words = f"{model.path} holds no *.safetensors; download the checkpoint again"
        yield Finding("model", False, words)
        return
    size = sum(file.stat().st_size for file in weights)
    yield Finding("model", True, f"{model.name}, {size / 1e6:.0f} MB of weights in {model.path}")
    yield from _needs(model.path, settings)


def _to_fetch(name: HubName) -> Finding:
    """Of a model that is not here: is there room for it?"""
    from huggingface_hub import constants

    needed = left_bytes(name)
    folder = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free
    words = f"{name} is to be fetched: {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB free in {folder}"
    if free < needed:
        return Finding("model", False, f"{words}; set HF_HOME to a folder on a larger disk")
    return Finding("model", True, f"{words}; `groundstream model fetch {name}`, or just start")


def _needs(folder: Path, settings: ServiceSettings) -> Iterator[Finding]:
    """Memory of a published model's weights against what there is."""
    import torch

    from agent.model.checkpoint import stands_apart
    from agent.model_needs import model_needs

    if stands_apart(folder):
        return
    try:
        needs = model_needs(folder, device=settings.device, dtype=settings.dtype)
    except AgentError as error:
        yield Finding("needs", False, str(error))
        return
    is_gpu = settings.device.startswith("cuda") and torch.cuda.is_available()
    free = psutil.virtual_memory().available
    if is_gpu:
        free = torch.cuda.mem_get_info(torch.device(settings.device))[0]
    num = needs.num_weights
    words = (
        f"{num / 1e9:.2f} G weights: {4 * num / 1e9:.1f} GB as float32, {2 * num / 1e9:.1f} GB as "
        f"bfloat16 or float16; with --dtype {settings.dtype} on {settings.device} "
        f"{needs.weight_bytes / 1e9:.1f} GB, {needs.peak_bytes / 1e9:.1f} GB while it is loaded, "
        f"beside the service; {free / 1e9:.1f} GB available"
    )
    if free < needs.peak_bytes:
        advice = "try --dtype bfloat16" if needs.weight_bytes > 2 * num else "use a larger machine"
        yield Finding("needs", False, f"{words}; {advice}")
        return
    yield Finding("needs", True, words)


def _device(device: str) -> Finding:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        words = f"{device}, but torch {torch.__version__} sees no GPU; use --device cpu"
        return Finding("device", False, f"{words}, or install the driver and torch's CUDA build")
    return Finding("device", True, device)


def _address(settings: ServiceSettings) -> Finding:
    try:
        settings.server.check_address()
    except SettingsError as error:
        return Finding("address", False, str(error))
    return Finding("address", True, settings.server.address)


def _port(subject: str, host: str, port: int, key: str) -> Finding:
    try:
        check_port_is_free(host, port, key)
    except SettingsError as error:
        return Finding(subject, False, str(error))
    return Finding(subject, True, f"{host}:{port} is free")


def _tls(settings: ServiceSettings) -> Finding:
    tls = settings.server.tls
    if tls.certificate_chain is None or tls.private_key is None:
        return Finding("tls", True, "off")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate_chain, tls.private_key)
        if tls.client_authorities is not None:
            context.load_verify_locations(tls.client_authorities)
        certificate = x509.load_pem_x509_certificate(Path(tls.certificate_chain).read_bytes())
    except (OSError, ValueError) as error:
        words = f"server.tls cannot be used: {error}"
        return Finding("tls", False, f"{words}; give PEM files, the key that of the certificate")
    left_days = (certificate.not_valid_after_utc.timestamp() - time.time()) / 86_400
    words = f"certificate for {left_days:.0f} more days"
    if left_days < _WARN_DAYS:
        return Finding("tls", False, f"{words}; renew {tls.certificate_chain}")
    return Finding("tls", True, words)


def _access(settings: ServiceSettings) -> Finding:
    try:
        access = open_access(settings)
    except SettingsError as error:
        return Finding("access", False, str(error))
    if access.is_open and not settings.server.is_local:
        words = "everybody who reaches the port may call; set access.api_keys or access.jwt"
        return Finding("access", False, words)
    return Finding("access", True, "open, on loopback" if access.is_open else "credentials needed")


def _redis(url: str | None) -> Finding:
    if url is None:
        return Finding("redis", True, "none given; an embedded server is started")
    # A URL may hold a password.
    where = re.sub(r"//[^@/]*@", "//***@", url)

    async def ask() -> str:
        async with redis.asyncio.Redis.from_url(
            url, socket_timeout=_REDIS_TIMEOUT_S, socket_connect_timeout=_REDIS_TIMEOUT_S
        ) as server:
            told: dict[str, object] = await server.info()
            return str(told.get("maxmemory_policy", ""))

    try:
        policy = asyncio.run(ask())
    except (RedisError, OSError, TimeoutError, ValueError) as error:
        words = f"{where} does not answer ({type(error).__name__}); start it or mend REDIS_URL"
        return Finding("redis", False, words)
    if policy == "noeviction":
        words = f"{where} refuses writes when it is full; set maxmemory-policy allkeys-lru there"
        return Finding("redis", False, words)
    return Finding("redis", True, f"{where}, {policy or 'policy unknown'}")
