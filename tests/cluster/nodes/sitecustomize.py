"""On the path of a test's nodes: all are on this host, and each takes a name of its own."""

import os
import platform

if "TEST_HOST" in os.environ:
    platform.node = lambda: os.environ["TEST_HOST"]

if os.environ.get("TEST_TORCH"):
    from importlib import metadata

    _version = metadata.version
    metadata.version = lambda name: os.environ["TEST_TORCH"] if name == "torch" else _version(name)
