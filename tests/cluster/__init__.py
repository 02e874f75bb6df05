"""Tests against a real Kubernetes; docs/kubernetes-notes.md says how it is made."""
