"""Where the Kubernetes API is, how to show who we are, and which objects are the fleets."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dynamo.config import option
from dynamo.errors import ConfigError
from dynamo.planner.config import DAY_S
from dynamo.planner.server_url import server_url
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.listening_socket import is_loopback

# Where a pod finds what its service account needs; by Kubernetes' documentation, "Accessing the API from a Pod".
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_NAME = re.compile("[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledObject:
    """Something with a scale subresource."""

    group: str
    version: str
    plural: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "ScaledObject":
        """From NAME, of a Deployment, or GROUP/VERSION/PLURAL/NAME; ConfigError for anything else."""
        parts = text.split("/")
        if len(parts) == 1:
            parts = ["apps", "v1", "deployments", *parts]
        if len(parts) != 4 or not all(map(_is_name, parts)):
            raise ConfigError(f"what Kubernetes scales is written NAME or GROUP/VERSION/PLURAL/NAME, not {text!r}")
        return cls(group=parts[0], version=parts[1], plural=parts[2], name=parts[3])

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}/{self.name}"

    def path(self, namespace: str) -> str:
        """Of its scale."""
        return f"/apis/{self.group}/{self.version}/namespaces/{namespace}/{self.plural}/{self.name}/scale"


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesConfig:
    """Scale workers that run in Kubernetes."""

    workers: str | None = option(
        None,
        flag="--kubernetes-workers",
        metavar="OBJECT",
        help="Kubernetes: the Deployment whose pods are workers that do all of each request, or another object with a"
        " scale, written GROUP/VERSION/PLURAL/NAME",
    )
    prefill: str | None = option(
        None, flag="--kubernetes-prefill", metavar="OBJECT", help="Kubernetes: likewise, the prefill workers"
    )
    decode: str | None = option(
        None, flag="--kubernetes-decode", metavar="OBJECT", help="Kubernetes: likewise, the decode workers"
    )
    namespace: str | None = option(
        None,
        flag="--kubernetes-namespace",
        metavar="NAME",
        help="Kubernetes: where those are (default: where the planner's own pod is)",
    )
    url: str | None = option(
        None,
        flag="--kubernetes-url",
        metavar="URL",
        help="Kubernetes: its API, such as that of `kubectl proxy` (default: the one of the cluster this pod is in)",
    )
    token_file: str | None = option(
        None,
        flag="--kubernetes-token-file",
        metavar="FILE",
        help="Kubernetes: holds a bearer token, and is read again for each call (default: the pod's service account's)",
    )
    ca_file: str | None = option(
        None,
        flag="--kubernetes-ca-file",
        metavar="FILE",
        help="Kubernetes: who has signed the API's certificate (default: the authority that the pod was given)",
    )
    timeout_s: float = option(
        5.0,
        flag="--kubernetes-timeout-s",
        minimum=0.01,
        maximum=DAY_S,
        help="Kubernetes: how long its API may be silent",
    )

    def fleets(self) -> Mapping[WorkerType, ScaledObject]:
        """Raises ConfigError unless there are workers, or both prefill and decode workers."""
        given = {
            WorkerType.Aggregated: self.workers,
            WorkerType.Prefill: self.prefill,
            WorkerType.Decode: self.decode,
        }
        named = {role: ScaledObject.parse(text) for role, text in given.items() if text is not None}
        if set(named) not in ({WorkerType.Aggregated}, {WorkerType.Prefill, WorkerType.Decode}):
            raise ConfigError("give --kubernetes-workers, or both --kubernetes-prefill and --kubernetes-decode")
        if len(set(named.values())) < len(named):
            raise ConfigError("--kubernetes-prefill and --kubernetes-decode are the same object")
        return named


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a KubernetesConfig amounts to here."""

    url: str
    namespace: str
    token_file: Path | None  # None: whoever stands at the URL shows a token of its own
    ca_file: Path | None  # None: those that the system trusts

    @classmethod
    def of(
        cls,
        config: KubernetesConfig,
        environ: Mapping[str, str] = os.environ,
        service_account: Path = SERVICE_ACCOUNT,
    ) -> "Cluster":
        """Raises ConfigError when it is not said where the API is, or a token would be told to everybody."""
        within = config.url is None
        url = _pods_url(environ) if config.url is None else server_url(config.url, "--kubernetes-url")
        own_token = service_account / "token" if within else None
        own_ca = service_account / "ca.crt" if within else None
        token_file = Path(config.token_file) if config.token_file else own_token
        if token_file is not None and url.startswith("http:") and not is_loopback(urlsplit(url).hostname or ""):
            raise ConfigError(f"--kubernetes-token-file: {url} would send the token in the clear; use https")
        namespace = config.namespace or _pods_namespace(service_account)
        if not _is_name(namespace):
            raise ConfigError(f"--kubernetes-namespace: {namespace!r} is no name of Kubernetes'")
        return cls(
            url=url,
            namespace=namespace,
            token_file=token_file,
            ca_file=Path(config.ca_file) if config.ca_file else own_ca,
        )


def _pods_url(environ: Mapping[str, str]) -> str:
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigError("this is no pod of Kubernetes: say where its API is, by --kubernetes-url")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _pods_namespace(service_account: Path) -> str:
    try:
        return (service_account / "namespace").read_text().strip()
    except OSError:
        raise ConfigError("say in which namespace the workers are, by --kubernetes-namespace") from None


def _is_name(part: str) -> bool:
    """Kubernetes' names and groups: lower case and digits, between them "-" and "." too."""
    return _NAME.fullmatch(part) is not None
