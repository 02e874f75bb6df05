"""Command lines of etcd, the API server, the scheduler, the controller manager and KWOK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.harness import kubeconfig
from tests.cluster.harness.certificates import Authority, signing_key

KWOK = """apiVersion: config.kwok.x-k8s.io/v1alpha1
kind: KwokConfiguration
options:
  nodeLeaseParallelism: 32
  nodePlayStageParallelism: 32
  podPlayStageParallelism: 32
---
"""
"""Four of each by default: too few to keep 1,000 nodes alive on a busy machine."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the API server listens, and the range of its Services."""

    address: str
    port: int
    services: str
    first_service: str

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"


class ControlPlane:
    """Files and programs of one cluster's control plane, below `directory`."""

    def __init__(self, directory: Path, endpoint: Endpoint) -> None:
        self.directory = directory
        self.endpoint = endpoint
        self.pki = directory / "pki"
        self.pki.mkdir()
        self.authority = Authority(self.pki)
        self._service_accounts = signing_key(self.pki / "service-accounts.key")
        self.admin = self.kubeconfig_for("admin", user="kybernate-admin", groups=["system:masters"])

    def kubeconfig_for(self, name: str, *, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig NAME.kubeconfig for a user of its own."""
        certificate, key = self.authority.issue(name, user=user, groups=groups)
        return kubeconfig.write(
            self.directory / f"{name}.kubeconfig",
            server=self.endpoint.url,
            authority=self.authority.certificate,
            certificate=certificate,
            key=key,
        )

    def programs(
        self, found: Mapping[str, Path], *, controllers: bool, nodes: bool, kwok: bool
    ) -> list[dict[str, Any]]:
        """Entries for the keeper's specification."""
        entries = [
            self._etcd(found["etcd"]),
            self._api_server(found["kube-apiserver"], controllers=controllers, nodes=nodes),
        ]
        if controllers:
            entries.append(self._controller_manager(found["kube-controller-manager"]))
            entries.append(self._scheduler(found["kube-scheduler"]))
        if kwok:
            entries.append(self._kwok(found["kwok"], stages=found["kwok-stages.yaml"]))
        return entries

    @property
    def ready_file(self) -> Path:
        """Made once the API server is ready; what needs it waits for this."""
        return self.directory / "ready"

    @property
    def _etcd_socket(self) -> Path:
        return self.directory / "etcd.sock"

    def _entry(self, name: str, argv: Sequence[object], *, after: Sequence[Path] = ()) -> dict[str, Any]:
        return {
            "name": name,
            "argv": [str(word) for word in argv],
            "log": str(self.directory / f"{name}.log"),
            "after": [str(path) for path in after],
            "restart": bool(after),
        }

    def _etcd(self, path: Path) -> dict[str, Any]:
        client, peer = f"unix://{self._etcd_socket}", f"unix://{self.directory / 'etcd-peer.sock'}"
        return self._entry(
            "etcd",
            [
                path,
                f"--data-dir={self.directory / 'etcd'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",  # the data dies with the cluster
                "--quota-backend-bytes=4294967296",
                "--log-level=warn",
            ],
        )

    def _api_server(self, path: Path, *, controllers: bool, nodes: bool) -> dict[str, Any]:
        endpoint = self.endpoint
        certificate, key = self.authority.issue(
            "apiserver",
            user="kube-apiserver",
            addresses=sorted({endpoint.address, "127.0.0.1", endpoint.first_service}),
            names=["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"],
        )
        to_kubelet, to_kubelet_key = self.authority.issue(
            "apiserver-kubelet-client", user="kube-apiserver-kubelet-client", groups=["system:masters"]
        )
        arguments: list[object] = [
            path,
            f"--etcd-servers=unix://{self._etcd_socket}",
            f"--bind-address={endpoint.address}",
            f"--advertise-address={endpoint.address}",
            f"--secure-port={endpoint.port}",
            "--permit-port-sharing",  # with the keeper, which holds the port so that nobody else gets it
            f"--service-cluster-ip-range={endpoint.services}",
            f"--cert-dir={self.pki}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.authority.certificate}",
            f"--kubelet-certificate-authority={self.authority.certificate}",
            f"--kubelet-client-certificate={to_kubelet}",
            f"--kubelet-client-key={to_kubelet_key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._service_accounts}",
            f"--service-account-signing-key-file={self._service_accounts}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--profiling=false",
            "--max-requests-inflight=2000",
            "--max-mutating-requests-inflight=1000",
        ]
        if not nodes:
            arguments.append("--endpoint-reconciler-type=none")  # it would refuse a loopback address
        if not controllers:
            # Nobody makes the default service accounts it asks for.
            arguments.append("--disable-admission-plugins=ServiceAccount")
        return self._entry("kube-apiserver", arguments, after=[self._etcd_socket])

    def _controller_manager(self, path: Path) -> dict[str, Any]:
        config = self.kubeconfig_for("kube-controller-manager", user="system:kube-controller-manager")
        return self._entry(
            "kube-controller-manager",
            [
                path,
                f"--kubeconfig={config}",
                f"--service-account-private-key-file={self._service_accounts}",
                f"--root-ca-file={self.authority.certificate}",
                f"--cluster-signing-cert-file={self.authority.certificate}",
                f"--cluster-signing-key-file={self.authority.key}",
                "--use-service-account-credentials=true",
                "--leader-elect=false",
                "--secure-port=0",
                "--kube-api-qps=1000",
                "--kube-api-burst=2000",
            ],
            after=[self.ready_file],
        )

    def _scheduler(self, path: Path) -> dict[str, Any]:
        config = self.kubeconfig_for("kube-scheduler", user="system:kube-scheduler")
        return self._entry(
            "kube-scheduler",
            [
                path,
                f"--kubeconfig={config}",
                "--leader-elect=false",
                "--secure-port=0",
                "--kube-api-qps=1000",
                "--kube-api-burst=2000",
            ],
            after=[self.ready_file],
        )

    def _kwok(self, path: Path, *, stages: Path) -> dict[str, Any]:
        config = self.kubeconfig_for("kwok", user="kwok", groups=["system:masters"])
        configuration = self.directory / "kwok.yaml"
        configuration.write_text(KWOK + stages.read_text())
        return self._entry(
            "kwok",
            [
                path,
                f"--kubeconfig={config}",
                f"--config={configuration}",
                "--manage-all-nodes=false",
                "--node-lease-duration-seconds=40",  # else the nodes are taken for dead after 40 s
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                "--node-ip=127.0.0.1",
                "--cidr=10.230.0.0/16",
            ],
            after=[self.ready_file],
        )
