"""The service as one Serve application: the only place that makes deployments.

One application, because the front end cannot do without its stages. Serve restarts every
deployment of an application when its `args` change, but not when replicas, queues or autoscaling
do: those numbers stand under `deployments` in `serve_config.yaml`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from agent.checked_settings import from_mapping
from agent.model_directory import has_auxiliary_encoder
from agent.settings import DeploymentSettings, ServiceSettings, with_environment
from deployments.front_end.ingress import Ingress
from deployments.stages.language import Language
from deployments.stages.vision import AuxiliaryEncoder, PrimaryEncoder, Proposal
from groundstream.errors import SettingsError

APPLICATION_NAME = "groundstream"
_BY_FRAME = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
"""Questions about one frame go to one language replica, to the next one where that is full."""


def build(args: dict[str, object]) -> Application:
    """The application for `serve deploy`, which applies the deployments' numbers itself."""
    settings = from_mapping(ServiceSettings, args, "args")
    return bind(with_environment(settings, os.environ), ())


def bind(settings: ServiceSettings, deployments: Sequence[DeploymentSettings]) -> Application:
    """The application with its deployments' numbers applied.

    Raises:
        SettingsError: numbers for a deployment that does not exist, or an address that other
            machines reach without TLS.
    """
    settings.server.check_address()
    options = {entry.name: entry.options() for entry in deployments}

    def deployment(cls: type[Any]) -> Any:
        plain: Any = serve.deployment(cls)
        return plain.options(**options.pop(cls.__name__, {}))

    # One that the model does not have needs no numbers.
    auxiliary = has_auxiliary_encoder(settings.model)
    if not auxiliary:
        options.pop(AuxiliaryEncoder.__name__, None)
    weights = {"dtype": settings.dtype}
    encoder = {**weights, "compiled": settings.compiled}
    # Fakes and stages that know nothing of it are not told.
    published = {"as_published": True} if settings.as_published else {}

    proposal = deployment(Proposal).bind(settings, network=settings.proposal_network, **published)
    language = (
        deployment(Language)
        .options(request_router_config=RequestRouterConfig(request_router_class=_BY_FRAME))
        .bind(
            settings,
            proposal=proposal,
            primary_encoder=deployment(PrimaryEncoder).bind(settings, **encoder, **published),
            auxiliary_encoder=(
                deployment(AuxiliaryEncoder).bind(settings, **encoder) if auxiliary else None
            ),
            engine=settings.engine,
            **weights,
            **published,
        )
    )
    application: Application = deployment(Ingress).bind(
        settings, language=language, proposal=proposal
    )
    if options:
        raise SettingsError(f"deployments that do not exist: {', '.join(options)}")
    return application
