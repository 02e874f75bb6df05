"""kubeconfig files."""

from __future__ import annotations

from pathlib import Path

import yaml


def write(path: Path, *, server: str, authority: Path, certificate: Path, key: Path) -> Path:
    """A kubeconfig that names the certificate files; only its owner may read it."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": "test", "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
