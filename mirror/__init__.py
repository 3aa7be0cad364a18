"""git-mirror: a Git mirror and low-latency fetch cache for GitOps."""

__version__ = "0.1.0"
