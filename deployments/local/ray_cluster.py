"""The inside of a local service: Ray, the application and an embedded cache, in one session.

Run by `deployments/local/supervisor.py` as a child, never by hand. Reads its order as one JSON
line; says what it waits for, "ready" and what went wrong as JSON lines; and serves until its
standard input ends, or until one of Ray's own processes does. No signal ever interrupts it: Ray
aborts when it is interrupted at the wrong moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from agent.settings import ServeConfig, ServiceSettings, serve_config
from deployments.app import APPLICATION_NAME, bind
from deployments.front_end.ingress import Ingress
from deployments.local import process_session
from deployments.local.embedded_cache import EmbeddedCache
from deployments.local.start_progress import StartProgress, effort_of, weights_in_memory
from groundstream.errors import AgentError, SettingsError, StageUnavailable

_logger = logging.getLogger(__name__)
_POLL_S = 0.05
_RAY_PAUSE_S = 2.0
_START_LOOK_S = 5.0
_TIMES_START = 2.0
_WATCH_S = 1.0
"""Between two looks at what was started."""
_READY_S = 10.0
"""Between two questions whether a frame still goes all the way, and the time to answer."""
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


def start(
    config: ServeConfig, folder: Path, *, report: Callable[[str], object]
) -> EmbeddedCache | None:
    """Start everything and wait until a frame has gone all the way.

    Args:
        config: every number of the service.
        folder: for the files of Ray and the cache; exists already, and is private.
        report: told what takes longer than it should.

    Returns:
        The cache, where it is an embedded one.

    Raises:
        SettingsError: the numbers do not fit together, or the folder's name is too long for Ray.
        StageUnavailable: a stage cannot start, or not in time.
    """
    settings = config.service
    deadline_s = time.monotonic() + settings.local_cluster.start_timeout_s
    cache = None if settings.cache.url is not None else EmbeddedCache(settings.cache, folder)
    if cache is not None:
        with_cache = dataclasses.replace(settings.cache, url=cache.url)
        settings = dataclasses.replace(settings, cache=with_cache)
    application = bind(settings, config.deployments)
    _start_ray(settings, folder, deadline_s=deadline_s, report=report)
    # After Ray: what is left of a start that failed is cleared away with all else there is.
    if cache is not None:
        cache.start()
    progress = StartProgress(
        functools.partial(effort_of, os.getsid(0)),
        patience_s=settings.local_cluster.start_timeout_s,
        report=report,
        weight_bytes=weights_in_memory(settings),
    )
    with progress.watching():
        try:
            serve.run(application, name=APPLICATION_NAME, route_prefix=None)
        except RuntimeError as error:
            reasons = "\n".join(_deployment_messages()) or str(error)
            raise StageUnavailable(f"the service did not start: {reasons}") from error
        _wait_until_serving(progress, patience_s=settings.local_cluster.start_timeout_s)
    return cache


def watch_over(
    ended: threading.Event, cache: EmbeddedCache | None, *, patience_s: float
) -> str | None:
    """Look after what was started, until it is told to stop or cannot go on.

    The cache is started again where it died; Serve does the same for its replicas. What nobody
    starts again is Ray itself.

    Args:
        ended: set when the service is to stop.
        cache: the embedded one, if there is one.
        patience_s: how long no frame may get through while replicas are started again.

    Returns:
        Why it cannot go on; None: it was told to stop.
    """
    served_s = asked_s = time.monotonic()
    while not ended.wait(_WATCH_S):
        if cache is not None:
            cache.keep_running()
        if gone := dead_ray_processes():
            return f"Ray's {' and '.join(gone)} ended"
        now_s = time.monotonic()
        if now_s - asked_s < _READY_S:
            continue
        asked_s = now_s
        if _is_serving():
            served_s = time.monotonic()
        elif now_s - served_s > patience_s:
            return f"no frame got through for {now_s - served_s:.0f} s"
    return None


def dead_ray_processes() -> list[str]:
    """Names of those of Ray's own processes that have ended by themselves."""
    # Private, and the only handle on these processes: nothing public tells of their end.
    node: Any = ray._private.worker._global_node
    return [] if node is None else sorted({name for name, _ in node.dead_processes()})


def _is_serving() -> bool:
    try:
        front_end = serve.get_deployment_handle(Ingress.__name__, APPLICATION_NAME)
        front_end.wait_until_serving.remote().result(timeout_s=_READY_S)
    except Exception:
        # Whatever it is: no call got through.
        return False
    return True


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


def _start_ray(
    settings: ServiceSettings, folder: Path, *, deadline_s: float, report: Callable[[str], object]
) -> None:
    """Start Ray, again and again while there is time: it gives up after half a minute itself."""
    # Serve reports every step of its own; we report ready.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # A secret of this service's own; Ray would keep one for all in the home folder, and say so.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    logging.getLogger(_AUTH_NOTICE_LOGGER).setLevel(logging.ERROR)
    # Set after Serve was imported, so that this process keeps the defaults: its own handles
    # run outside an event loop, which the same settings would forbid.
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    while True:
        try:
            ray.init(
                address="local",
                num_cpus=settings.local_cluster.num_cpus,
                object_store_memory=settings.local_cluster.object_store_bytes,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                # Ray opens its folder to everybody; the one around it stays ours alone.
                _temp_dir=str(ray_folder(folder)),
            )
            break
        except Exception as error:
            # Of no type of its own, after half a minute that cannot be set.
            _clear_ray_away()
            if isinstance(error, OSError) and "AF_UNIX" in str(error):
                raise SettingsError(
                    f"{folder} has too long a name for Ray's sockets; set TMPDIR to a folder "
                    "with a short one, such as /tmp"
                ) from error
            left_s = deadline_s - time.monotonic()
            if left_s <= 0.0:
                raise StageUnavailable(
                    f"Ray did not start ({error}); try again when the machine has less to do, and "
                    "see `groundstream doctor`"
                ) from error
            report(f"Ray has not started yet, the machine is busy; trying for {left_s:.0f} s more")
            time.sleep(min(_RAY_PAUSE_S, left_s))
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})


def _clear_ray_away() -> None:
    """What a start that failed left behind."""
    with contextlib.suppress(Exception):
        ray.shutdown()
    if os.getsid(0) == os.getpid():
        process_session.kill(os.getsid(0))


def _wait_until_serving(progress: StartProgress, *, patience_s: float) -> None:
    """Wait while something moves; a frame that fails again and again does not get through."""
    # Asked of the replica itself, where no certificate and no key is needed.
    front_end = serve.get_deployment_handle(Ingress.__name__, APPLICATION_NAME)
    failure, failing_since_s = "", math.inf
    while progress.left_s > 0.0 and time.monotonic() - failing_since_s < patience_s:
        with contextlib.suppress(RayError, RayServeException, TimeoutError):
            front_end.wait_until_serving.remote().result(timeout_s=_START_LOOK_S)
            return
        with contextlib.suppress(RayError, RayServeException, TimeoutError):
            failure = front_end.start_failure.remote().result(timeout_s=_START_LOOK_S)
            failing_since_s = min(failing_since_s, time.monotonic()) if failure else math.inf
        time.sleep(_POLL_S)
    why = f" ({failure})" if failure else ""
    raise StageUnavailable(
        f"the service did not become ready in time{why}; start it with --logs FOLDER and read the "
        "replicas' logs there"
    )


def ray_folder(folder: Path) -> Path:
    """Where Ray keeps its files, within the service's folder."""
    return folder / "ray"


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
    config = serve_config(order["args"], order["deployments"])
    started_s = time.monotonic()
    try:
        cache = start(config, folder, report=lambda line: _say(replies, {"progress": line}))
    except AgentError as error:
        _say(replies, {"error": type(error).__name__, "message": str(error)})
        guard.ended.wait()
        return
    guard.ready = True
    _say(replies, {"ready": True})
    # A replica that is started again takes about as long as it did the first time.
    took_s = time.monotonic() - started_s
    patience_s = max(config.service.local_cluster.start_timeout_s, _TIMES_START * took_s)
    reason = watch_over(guard.ended, cache, patience_s=patience_s)
    if reason is not None:
        _logger.error("the service ends: %s", reason)
        _say(replies, {"ended": reason})
        # Without Ray nothing can be stopped in good order; the process that started us clears up.
        os._exit(1)
    stop(order["stop_within_s"])
    if os.getppid() != parent:
        # No process is left to clear away what we used.
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
