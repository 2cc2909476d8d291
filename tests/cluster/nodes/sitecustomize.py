"""On the path of a test's nodes: all are on this host, and each takes a name of its own."""

import os
import platform

if "TEST_HOST" in os.environ:
    platform.node = lambda: os.environ["TEST_HOST"]
