"""Print what torch and this project need of Python, without torch and NVIDIA's libraries.

``python requirements.py PYPROJECT`` reads the requirements of the torch that is installed, and the
dependencies and extras of the project.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Final

EXTRAS: Final = ("gpu", "dev")

# The libraries are simulated; Triton compiles kernels, of which none runs.
LEFT_OUT: Final = re.compile(r"(nvidia-(?!ml-py)|cuda-|triton\b|torch\b)")


def wanted(pyproject: Path) -> Iterator[str]:
    """Yield requirements, without markers: they are all for this machine."""
    for requirement in requires("torch") or []:
        if "extra ==" not in requirement:
            yield requirement.partition(";")[0].strip()
    project = tomllib.loads(pyproject.read_text())["project"]
    yield from project["dependencies"]
    for extra in EXTRAS:
        yield from project["optional-dependencies"][extra]


if __name__ == "__main__":
    lines = dict.fromkeys(wanted(Path(sys.argv[1])))
    sys.stdout.writelines(f"{line}\n" for line in lines if not LEFT_OUT.match(line))
