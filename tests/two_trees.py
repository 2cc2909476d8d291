"""A user's package in two versions, whose modules keep to themselves, register, set or patch."""

from pathlib import Path

SHOP = {
    "shop/__init__.py": "NAME = {name!r}\n",
    "shop/late.py": "from . import NAME\n",
    "shop/nets.py": """
import torch
from torch import nn
from . import NAME


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        from .late import NAME as late  # not before the first call
        import shop
        from shop.ways import names
        assert names() == {NAME}, (names(), NAME)
        assert (late, shop.NAME) == (NAME, NAME), (late, shop.NAME, NAME)
        return self.last(torch.{activation}(self.first(x)))


def make():
    return Net()
""",
    "shop/ways.py": """
import dataclasses
import functools
import importlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import spaces.inner
from shop import NAME
from . import lazily


@dataclasses.dataclass
class Config:
    name: str = NAME


@functools.lru_cache
def cached():
    return NAME


def names():
    again = pickle.loads(pickle.dumps(Config()))
    assert type(again) is Config
    with ThreadPoolExecutor(1) as pool:
        in_a_thread = pool.submit(lambda: importlib.import_module("shop.late").NAME).result()
    return {again.name, cached(), spaces.inner.NAME, lazily.late.NAME, in_a_thread}
""",
    "shop/lazily.py": """
import importlib

def __getattr__(name):
    return importlib.import_module("shop." + name)
""",
    "spaces/inner.py": "NAME = {name!r}\n",  # of a package without a file of its own
    "registers.py": """
import torch
from shop.nets import make

OPERATORS = torch.library.Library("shop_of_a_test", "DEF")
OPERATORS.define("twice(Tensor x) -> Tensor")
""",
    "custom.py": """
import torch
from torch import Tensor


@torch.library.custom_op("custom_of_a_test::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x
""",
    "sets.py": """
import torch
from shop.nets import make

torch.set_float32_matmul_precision({precision!r})
""",
    "patches.py": """
import torch.nn.functional
from shop.nets import make

def relu(x, inplace=False):
    return x

torch.nn.functional.relu_of_a_test = relu
""",
    "plain.py": "from shop.nets import make\n",
}
ACTIVATION = {"base": "tanh", "candidate": "sin"}
PRECISION = {"base": "highest", "candidate": "high"}


def written(folder: Path, name: str) -> Path:
    """Write the version of a side, ``base`` or ``candidate``, into a folder; return that."""
    for path, template in SHOP.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = template.replace("{name!r}", repr(name)).replace("{activation}", ACTIVATION[name])
        file.write_text(text.replace("{precision!r}", repr(PRECISION[name])), "utf-8")
    return folder
