"""Both versions in one process: what keeps them apart is found and said, what does not is timed."""

import gc
import importlib
import logging
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn

from gradbench.analysis.operation_changes import in_words
from gradbench.comparison import checkouts, interleaved_sides, shared_state, side_imports, worker
from gradbench.comparison.code_origins import check_modules
from gradbench.comparison.replicate_effort import Replication
from gradbench.comparison.replication import Replicator
from gradbench.comparison.sharing import obstacle
from gradbench.errors import BadModel
from gradbench.experiment.matrix import AXES, Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.runner.timing_rules import precision

QUICK = Replication(
    warm_up_s=0.0, limit_s=60, cell_s=0.0, least_rounds=4, turns=3, least_turns=3, slice_s=0.001
)

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


def written(folder, name):
    for path, template in SHOP.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = template.replace("{name!r}", repr(name)).replace("{activation}", ACTIVATION[name])
        file.write_text(text.replace("{precision!r}", repr(PRECISION[name])), "utf-8")
    return folder


@pytest.fixture
def versions(tmp_path):
    """A base and a candidate that differ in an operator, a name and a setting."""
    measuring = tmp_path / "measuring"
    measuring.mkdir()
    (measuring / "gradbench").symlink_to(checkouts.PACKAGE, target_is_directory=True)
    return [
        checkouts.Version(
            name=name,
            python=sys.executable,
            paths=(written(tmp_path / name, name), measuring),
            tree=tmp_path / name,
        )
        for name in checkouts.SIDES
    ]


def replicated(versions, name):
    """Examine a model of the trees and make a replicate; return its results, and its cell."""
    cell = Cell(model=name, workload="inference", grad_mode="global_on", batch_size=4)
    source = ModelSource(build=f"{name}:make", input=("B,8",))
    replicator = Replicator(*versions, replication=QUICK, sources={name: source})
    replicator.examine([cell])
    replicator.replicate([cell])
    assert replicator.results.failures == {}
    assert len(replicator.results.replicates[cell]) == 1
    return replicator.results, cell


@pytest.mark.slow
def test_sides_that_keep_to_themselves_share_a_process_and_each_runs_its_own_code(versions):
    results, cell = replicated(versions, "plain")
    assert results.apart == {}
    assert in_words(*results.operations[cell]) == (
        "operators: -1 aten.detach, or an output that is saved, +1 aten.sin.default, "
        "-1 aten.tanh.default; saved +256 B; peak +64 B"
    )
    assert len(results.replicates[cell][0].base_ns) == 1  # four rounds are one turn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sets", "float32 matmul precision is highest on the base and high on the candidate"),
        pytest.param(
            "registers",
            "it calls torch.library.Library('shop_of_a_test'), which registers for",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            "patches",
            "it puts its own code into torch.nn.functional.relu_of_a_test",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_sides_that_would_share_more_than_they_may_take_turns_in_pairs(versions, name, why):
    results, cell = replicated(versions, name)
    assert why in results.apart[cell]
    assert len(results.replicates[cell][0].base_ns) == QUICK.turns


# What a tree leaves behind


LOOKED_INTO = (
    *("torch", "torch.classes", "torch.library", "torch.overrides", "torch.serialization"),
    *("torch.nn", "torch.nn.functional", "torch.nn.modules", "torch.nn.modules.linear"),
)
"""Modules of others in which tests put something."""


class FewModules:
    """``sys`` with these modules and those imported later: to look into all takes a second."""

    def __init__(self):
        self._others = set(sys.modules) - set(LOOKED_INTO)

    @property
    def modules(self):
        return {name: one for name, one in sys.modules.items() if name not in self._others}

    def __getattr__(self, name):
        return getattr(sys, name)


@pytest.fixture
def one_tree(watched, monkeypatch):
    """The tree, in a process of which few other modules are looked into."""
    monkeypatch.setattr(shared_state, "sys", FewModules())
    return *watched, shared_state.Bindings()


@pytest.fixture
def whole_process(watched):
    """The tree, in a process of which every module is looked into."""
    return *watched, shared_state.Bindings()


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A tree that this process imports from, watched; afterwards all is as it was."""
    for name in ("addHandler", "addFilter"):  # which are watched from now on
        monkeypatch.setattr(logging.Logger, name, getattr(logging.Logger, name))
    monkeypatch.setattr(torch.library.Library, "__init__", torch.library.Library.__init__)
    for registry in (torch.ops, torch.classes):
        monkeypatch.setattr(registry, "load_library", registry.load_library, raising=False)
    before, path = dict(sys.modules), list(sys.path)
    tree = side_imports.tree(written(tmp_path / "base", "base"), [str(tmp_path / "base")])
    sys.path[:] = tree.path
    yield tree, shared_state.Registrations(tree)
    sys.modules.clear()
    sys.modules.update(before)
    sys.path[:] = path


@pytest.mark.parametrize("mode", [one for one in AXES["compile"].values if one != "off"])
def test_compiled_cells_take_pairs_for_there_is_one_compiler_in_a_process(tmp_path, mode):
    side = checkouts.Version(name="base", python=sys.executable, paths=(tmp_path,), tree=tmp_path)
    replicator = Replicator(side, side, replication=Replication(), sources={})
    one = Cell(model="it", workload="inference", grad_mode="no_grad", compile=mode)
    replicator.examine([one])
    assert "torch.compile keeps one cache" in replicator.results.apart[one]


def test_a_tree_that_compiles_a_part_by_itself_is_kept_apart(one_tree, monkeypatch):
    assert obstacles(one_tree) == []
    counters = {"frames": {"total": one_tree[1].frames_before + 1}}
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", SimpleNamespace(counters=counters))
    monkeypatch.setattr(shared_state, "sys", sys)
    assert shared_state.frames_compiled() == one_tree[1].frames_before + 1
    monkeypatch.setattr(shared_state, "strangers", lambda *_: [])
    (why,) = obstacles(one_tree)
    assert why.startswith("it uses torch.compile")
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", SimpleNamespace())
    assert shared_state.frames_compiled() == 0


def obstacles(one_tree, *names):
    for name in names:
        importlib.import_module(name)
    return list(shared_state.obstacles(*one_tree))


def test_a_tree_that_keeps_to_itself_leaves_no_obstacle(whole_process):
    assert obstacles(whole_process, "plain", "shop.late") == []
    assert {"plain", "shop", "shop.late", "shop.nets"} <= set(whole_process[0].modules)


def test_a_tree_s_code_in_another_s_module_is_an_obstacle(one_tree, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "relu_of_a_test", None, raising=False)
    assert obstacles(one_tree, "patches") == [
        "it puts its own code into torch.nn.functional.relu_of_a_test"
    ]


@pytest.mark.parametrize(
    ("place", "install"),
    [
        ("torch.serialization.shop", lambda own: {"shop": own.make}),
        ("torch.serialization.shop", lambda own: [own.Net]),
        ("torch.serialization.shop", lambda own: own.Net()),
        ("torch.serialization.shop", lambda own: own),
        ("torch.serialization.shop", lambda own: type("T", (), {"forward": own.make})),
    ],
    ids=["registry", "list", "object", "module", "class"],
)
def test_it_is_found_in_registries_and_classes_too(one_tree, monkeypatch, place, install):
    own = importlib.import_module("shop.nets")
    monkeypatch.setattr(torch.serialization, "shop", install(own), raising=False)
    assert obstacles(one_tree) == [f"it puts its own code into {place}"]


def test_what_is_kept_by_its_own_class_is_no_obstacle_for_the_other_s_is_another(
    one_tree, monkeypatch
):
    own = importlib.import_module("shop.nets")
    monkeypatch.setattr(torch.serialization, "shop", {own.Net: own.make}, raising=False)
    assert obstacles(one_tree) == []


def test_what_torch_registers_when_a_tree_first_asks_for_it_is_torch_s(one_tree, tmp_path):
    (tmp_path / "base" / "asks.py").write_text("import torch._of_a_test\n")
    code = compile("torch.library.Library('lazy_of_a_test', 'DEF')", torch.__file__, "exec")
    exec(
        compile("exec(code)", str(tmp_path / "base" / "asks.py"), "exec"),
        {"code": code} | vars(torch) | {"torch": torch},
    )
    assert obstacles(one_tree) == []


def test_an_operator_that_a_tree_registers_is_an_obstacle(one_tree):
    assert obstacles(one_tree, "registers") == [
        "it calls torch.library.Library('shop_of_a_test'), which registers for the whole process"
    ]


def test_it_is_named_by_what_the_tree_called(one_tree):
    called = "torch.library.custom_op('custom_of_a_test::twice')"
    assert obstacles(one_tree, "custom") == [
        f"it calls {called}, which registers for the whole process"
    ]


PATCH = """
import functools
import torch
from torch import nn

def mine(x, *args, **kwargs):
    return x

class Mine:
    def method(self, x):
        return x
"""


@pytest.mark.parametrize(
    ("patch", "place"),
    [
        ("torch.nn.functional.gelu = functools.partial(mine, 1)", "torch.nn.functional.gelu"),
        ("torch.nn.functional.gelu = Mine().method", "torch.nn.functional.gelu"),
        ("torch.nn.functional.gelu = functools.lru_cache(mine)", "torch.nn.functional.gelu"),
        ("nn.Linear.wide = property(mine)", "torch.nn.modules.linear.Linear"),
        ("nn.Linear.wide = property(None, mine)", "torch.nn.modules.linear.Linear"),
        ("nn.Linear.wide = property(len, None, mine)", "torch.nn.modules.linear.Linear"),
        ("nn.Linear.forward = functools.partialmethod(mine)", "torch.nn.modules.linear.Linear"),
        ("nn.Linear.made = staticmethod(mine)", "torch.nn.modules.linear.Linear"),
        ("registry_of_a_test.REGISTRY.register('net', Mine)", "registry_of_a_test.REGISTRY"),
        ("registry_of_a_test.Base.kinds['net'] = Mine", "registry_of_a_test.Base"),
    ],
)
def test_whatever_wraps_a_tree_s_code_in_another_s_module_it_is_found(
    one_tree, tmp_path, monkeypatch, patch, place
):
    monkeypatch.setattr(torch.nn.functional, "gelu", torch.nn.functional.gelu)
    monkeypatch.setattr(nn.Linear, "forward", nn.Linear.forward)
    for name in ("wide", "made"):
        monkeypatch.setattr(nn.Linear, name, None, raising=False)
    others = tmp_path / "others"
    others.mkdir()
    (others / "registry_of_a_test.py").write_text(
        "class Registry:\n"
        "    def __init__(self):\n        self._by_name = {}\n"
        "    def register(self, name, kind):\n        self._by_name[name] = kind\n"
        "class Base:\n    kinds = {}\n"
        "REGISTRY = Registry()\n"
    )
    monkeypatch.syspath_prepend(str(others))
    (tmp_path / "base" / "wraps.py").write_text(
        f"{PATCH}\nimport registry_of_a_test\n{patch}\n", "utf-8"
    )
    found = obstacles(one_tree, "wraps")
    assert f"it puts its own code into {place}" in found, found


@pytest.fixture
def unwatched_collector():
    """No callback of the garbage collector: a library of the tests counts its time in a global."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks.extend(callbacks)


@pytest.mark.usefixtures("unwatched_collector")
def test_another_s_function_in_another_s_place_is_a_setting_that_sides_must_share(
    whole_process, tmp_path, monkeypatch
):
    gelu, forward = torch.nn.functional.gelu, nn.Linear.forward
    monkeypatch.setattr(torch.nn.functional, "gelu", gelu)
    monkeypatch.setattr(nn.Linear, "forward", forward)
    bindings = shared_state.Bindings()
    assert dict(bindings.changes()) == {}
    (tmp_path / "base" / "exchanges.py").write_text(
        "from torch import nn\n"
        "nn.functional.gelu = nn.functional.silu\n"
        "nn.Linear.forward = nn.Identity.forward\n",
        "utf-8",
    )
    assert obstacles(whole_process, "exchanges") == []
    changed = side(settings=shared_state.settings(bindings))
    monkeypatch.setattr(torch.nn.functional, "gelu", gelu)
    monkeypatch.setattr(nn.Linear, "forward", forward)
    unchanged = side(settings=shared_state.settings(bindings))
    assert obstacle(unchanged, changed) == (
        "torch.nn.functional.gelu is as it was on the base and torch.nn.functional.silu on the "
        "candidate"
    )
    assert obstacle(changed, changed) == ""


def test_a_mode_that_a_tree_enters_for_good_is_an_obstacle(one_tree, tmp_path):
    (tmp_path / "base" / "enters.py").write_text(
        "from torch.overrides import TorchFunctionMode\n"
        "class Watching(TorchFunctionMode):\n    pass\n"
        "MODE = Watching()\nMODE.__enter__()\n",
        "utf-8",
    )
    try:
        assert obstacles(one_tree, "enters") == ["it enters Watching for the whole process"]
    finally:
        sys.modules["enters"].MODE.__exit__(None, None, None)
    assert list(shared_state.obstacles(*one_tree)) == []


def test_loggers_that_a_tree_sets_up_are_the_process_s(one_tree, monkeypatch):
    logger = logging.getLogger("shop.of a test")
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    before = shared_state.settings()["loggers"]
    assert obstacles(one_tree, "plain") == []
    logger.handlers.append(logging.StreamHandler())
    assert obstacles(one_tree) == [
        "it adds a handler or a filter to the logger shop.of a test, which both sides would use"
    ]
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    assert shared_state.settings()["loggers"] != before


def test_a_handler_of_the_root_logger_is_an_obstacle_where_the_tree_s_code_adds_it(
    one_tree, tmp_path, monkeypatch
):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logging.getLogger().addHandler(logging.NullHandler())  # by somebody else
    assert obstacles(one_tree, "plain") == []
    logging.getLogger().handlers.clear()
    (tmp_path / "base" / "logs.py").write_text("import logging\nlogging.basicConfig()\n", "utf-8")
    assert obstacles(one_tree, "logs") == [
        "it calls logging.getLogger().addHandler, which registers for the whole process"
    ]


def test_numbers_of_others_that_count_or_tell_the_time_do_not_keep_sides_apart(
    one_tree, tmp_path, monkeypatch
):
    others = tmp_path / "others"
    others.mkdir()
    (others / "counts_of_a_test.py").write_text("STEPS, SINCE, WIDTH = 0, 0.0, 1\n", "utf-8")
    monkeypatch.syspath_prepend(str(others))
    library = importlib.import_module("counts_of_a_test")
    bindings = shared_state.Bindings()
    library.SINCE, library.WIDTH = time.monotonic(), 2

    def step():
        library.STEPS += 1

    step()
    bindings.learn_counters(one_tree[0], step)
    named = {name for name, _ in bindings.changes() if name.startswith("counts_of_a_test")}
    assert named == {"counts_of_a_test.WIDTH"}


def test_what_the_tree_sets_in_a_library_that_it_imports_itself_is_read(
    one_tree, tmp_path, monkeypatch
):
    others = tmp_path / "others"
    others.mkdir()
    (others / "library_of_a_test.py").write_text(
        "WAY, CALLS, ROOT, HOW = 'fast', 0, '', {'n': 1, 'f': len}\n"
        "class Flags:\n    on = False\n\n"
        "def plain(): ...\ndef quick(): ...\n\nchosen = plain\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(others))
    (tmp_path / "base" / "uses.py").write_text("import library_of_a_test\n", "utf-8")
    tree, _, bindings = one_tree
    library = importlib.import_module("library_of_a_test")
    assert bindings.later_values(tree) == {}  # others have imported it
    importlib.import_module("uses")

    def step():
        library.CALLS += 1

    bindings.learn_counters(tree, step)
    before = bindings.later_values(tree)["library_of_a_test"]
    assert before == {
        "library_of_a_test.WAY": "'fast'",
        "library_of_a_test.ROOT": "''",
        "library_of_a_test.HOW['n']": "1",
        "library_of_a_test.Flags.on": "False",
        "library_of_a_test.chosen": "library_of_a_test.plain",
    }
    library.WAY, library.ROOT, library.HOW["n"] = "x" * 200, tree.root, 2
    library.Flags.on, library.chosen = True, library.quick
    now = bindings.later_values(tree)["library_of_a_test"]
    assert {name for name in before if before[name] != now[name]} == before.keys() - {
        "library_of_a_test.ROOT"
    }
    other = before | {"library_of_a_test.Flags.on": "True"}
    assert obstacle(side(values={"l": before}), side(values={"l": other})) == (
        "library_of_a_test.Flags.on is False on the base and True on the candidate"
    )


def test_default_hooks_of_autograd_and_threads_are_an_obstacle(one_tree):
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="metrics")
    thread.start()
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: one)
    try:
        with hooks:
            assert obstacles(one_tree) == [
                "it enters saved_tensors_hooks for the whole process",
                "its thread metrics goes on beside the steps, of both sides",
            ]
    finally:
        over.set()
        thread.join()
    assert obstacles(one_tree) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("flushing of denormal numbers", lambda: torch.set_flush_denormal(True)),
        ("number of threads", lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
        ("recursion limit", lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1)),
        ("warning filters", lambda: warnings.simplefilter("error", ImportWarning)),
        ("autocast", lambda: torch.set_autocast_enabled("cpu", True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_tree_switches_for_the_process_is_read(name, change, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = shared_state.settings()[name]
    threads, limit = torch.get_num_threads(), sys.getrecursionlimit()
    try:
        with warnings.catch_warnings():
            change()
            assert shared_state.settings()[name] != before
    finally:
        torch.set_num_threads(threads)
        sys.setrecursionlimit(limit)
        torch.set_flush_denormal(False)
        torch.set_autocast_enabled("cpu", False)
    monkeypatch.undo()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_library_that_a_tree_loads_by_ctypes_is_an_obstacle(one_tree, tmp_path):
    source = tmp_path / "base" / "fast.c"
    source.write_text("int twice(int x) { return 2 * x; }\n")
    library = tmp_path / "base" / "fast.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    (tmp_path / "base" / "calls_c.py").write_text(
        "import ctypes\nfrom pathlib import Path\n"
        "twice = ctypes.CDLL(str(Path(__file__).with_name('fast.so'))).twice\n",
        "utf-8",
    )
    assert obstacles(one_tree, "calls_c") == ["it loads fast.so, a compiled library"]


def test_a_package_of_the_working_tree_that_another_version_imports_is_refused(tmp_path):
    home = tmp_path / "candidate"
    base, candidate = (
        checkouts.Version(
            name=name,
            python=sys.executable,
            paths=(tmp_path / name,),
            tree=tmp_path / name,
            home=home if name == "base" else None,
        )
        for name in checkouts.SIDES
    )
    installed = str(home / ".venv/lib/python3.11/site-packages/numpy.py")
    check_modules(base, {"numpy": installed, "shop": str(tmp_path / "base/shop.py")})
    elsewhere = str(home / "libs/other/__init__.py")
    with pytest.raises(BadModel, match=r"the base imports other from '.*libs/other/__init__.py'"):
        check_modules(base, {"other": elsewhere})
    check_modules(candidate, {"other": elsewhere})


def test_a_file_that_is_none_is_not_taken_for_one_of_the_folder_one_stands_in(one_tree):
    assert not Path(torch.classes.__file__).is_absolute()
    outside = shared_state.outside(one_tree[0])
    assert "torch.classes" not in outside
    assert outside["torch"] == torch.__file__


def test_settings_are_read_whatever_the_build_lacks():
    found = shared_state.settings()
    assert found["default dtype"] == "torch.float32"
    assert "environment variable PATH" in found
    assert not {f"environment variable {name}" for name in shared_state.OWN_ENVIRONMENT} & set(
        found
    )


def side(**given):
    """Return what a side that has been looked at says, but for what is given."""
    return {"obstacles": [], "own": [], "outside": {}, "settings": {}, "values": {}} | given


def test_a_setting_that_the_sides_set_differently_keeps_them_apart():
    alike = side(settings={"default dtype": "torch.float32"})
    other = side(settings={"default dtype": "torch.float64"})
    assert obstacle(alike, alike) == ""
    assert obstacle(alike, other) == (
        "default dtype is torch.float32 on the base and torch.float64 on the candidate"
    )
    assert obstacle(alike, other | {"obstacles": ["shop._C is a compiled extension"]}) == (
        "shop._C is a compiled extension"
    )


def test_a_module_that_is_one_side_s_own_and_installed_for_the_other_keeps_them_apart():
    own, installed = side(own=["shop", "lib"]), side(own=["shop"], outside={"lib": "/env/lib.py"})
    words = "lib is of the tree on the {}, and of elsewhere on the other side"
    assert obstacle(own, installed) == words.format("base")
    assert obstacle(installed, own) == words.format("candidate")
    assert obstacle(own, own) == obstacle(installed, installed) == ""


# Weights


def subject(module, x):
    parts = [module]
    tensors = [*module.parameters(), *module.buffers(), x]
    return SimpleNamespace(parts=lambda: parts, resident=lambda: tensors)


def net(seed, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))


def test_equal_weights_are_one_memory_with_gradients_of_their_own():
    x, base, candidate = torch.ones(2, 4), net(0), net(0)
    other = x.clone()
    assert interleaved_sides.share(subject(base, x), subject(candidate, other))
    for one, two in zip(base.parameters(), candidate.parameters(), strict=True):
        assert (one is not two, one.data_ptr()) == (True, two.data_ptr())
    assert x.data_ptr() == other.data_ptr()
    base(x).sum().backward()
    assert all(parameter.grad is None for parameter in candidate.parameters())


@pytest.mark.parametrize("candidate", [net(1), net(0, width=8), nn.Sequential(nn.Linear(4, 4))])
def test_weights_that_differ_at_all_stay_apart(candidate):
    x = torch.ones(2, 4)
    base = net(0)
    before = [parameter.clone() for parameter in candidate.parameters()]
    assert not interleaved_sides.share(subject(base, x), subject(candidate, x.clone()))
    assert all(map(torch.equal, before, candidate.parameters()))
    assert not {p.data_ptr() for p in base.parameters()} & {
        p.data_ptr() for p in candidate.parameters()
    }


def test_a_buffer_or_an_input_that_a_step_changes_stays_each_side_s_own():
    base, candidate = net(0), net(0)
    given = [torch.ones(2, 4) for _ in range(2)]

    def step():
        for module, x in zip((base, candidate), given, strict=True):
            module(x)
            x.add_(1)

    subjects = map(subject, (base, candidate), given)
    assert interleaved_sides.share(*subjects, step=step)
    own = {name for name, one in base.state_dict().items()
           if one.data_ptr() != candidate.state_dict()[name].data_ptr()}  # fmt: skip
    assert own == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert given[0].data_ptr() != given[1].data_ptr()


# Rounds


def test_each_side_steps_in_its_turn_and_in_its_mode_and_both_draw_the_same():
    turns = SimpleNamespace(now=None)
    turns.give = lambda index: setattr(turns, "now", index)
    seen = [[], []]

    def arm(index):
        def step():
            assert (turns.now, torch.is_grad_enabled()) == (index, False)
            seen[index].append(torch.rand(1).item())

        given = SimpleNamespace(step=step, held=torch.no_grad)
        return interleaved_sides.Arm(index, given, SimpleNamespace())

    arms = [arm(0), arm(1)]
    visits = interleaved_sides.Visits(turns, lambda: None, random.Random(0))
    assert visits.warm_up(arms, seconds=0.0) > 0
    for drawn in seen:
        drawn.clear()
    times = visits.rounds(
        arms, iterations=3, seconds=0.0, least=5, untimed=True, precision=precision
    )
    assert list(map(len, times)) == [5, 5]
    assert seen[0] == seen[1]
    assert len(seen[0]) == len(set(seen[0]))
    assert 5 * (3 + 1) <= len(seen[0]) <= 5 * (3 + 2)  # some rounds have an untimed step more


def test_both_sides_draw_the_same_from_whichever_generator_a_step_draws_from():
    numbers, seen = interleaved_sides.Numbers(), []
    numbers.mark()
    torch.rand(1)
    numpy.random.rand()
    random.random()
    numbers.look()
    numbers.mark()
    for _ in range(2):
        numbers.put_back()
        seen.append((torch.rand(1).item(), numpy.random.rand(), random.random()))
    assert seen[0] == seen[1]
    quiet = interleaved_sides.Numbers()
    quiet.mark()
    quiet.look()
    quiet.mark()
    drawn = random.random()
    quiet.put_back()
    assert drawn != random.random()


@pytest.mark.parametrize(
    ("disturbed", "left"), [(0, 7), (3, 4), (5, 2), (6, 7)], ids=["none", "3", "5", "too many"]
)
def test_rounds_in_which_the_core_was_taken_are_left_out_where_enough_others_remain(
    monkeypatch, disturbed, left
):
    reads, seconds = iter(range(100)), iter(range(100))
    monkeypatch.setattr("time.process_time", lambda: next(seconds))
    monkeypatch.setattr(  # two for each side's batch
        interleaved_sides, "_switches", lambda: min(next(reads), 4 * disturbed)
    )
    given = SimpleNamespace(step=lambda: None, held=torch.no_grad)
    arms = [interleaved_sides.Arm(index, given, SimpleNamespace()) for index in (0, 1)]
    visits = interleaved_sides.Visits(
        SimpleNamespace(give=lambda index: None), lambda: None, random.Random(0)
    )
    times = visits.rounds(
        arms, iterations=1, seconds=6, least=2, untimed=False, precision=precision
    )
    assert list(map(len, times)) == [left, left]


def test_a_batch_of_a_pair_in_which_others_had_the_core_is_left_out_and_one_of_own_threads_is_not(
    monkeypatch,
):
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(clock) ** 2)
    arm = SimpleNamespace(step=lambda: None, held=torch.no_grad)
    device = SimpleNamespace(synchronize=lambda: None)

    def batches(*taken):
        reads = iter(one for end in taken for one in ((0, 0), end))
        monkeypatch.setattr(worker, "taken_away", lambda: next(reads))
        return len(worker.slice_ns(arm, device, 1, len(taken)))

    own = worker.OWN_NS + 1
    assert batches((0, 0), (0, own), (0, 0)) == 3
    assert batches((0, 0), (1, 0), (2, own)) == 2
    assert batches((1, 0), (1, 0)) == 2  # none is left: then all count


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_rounds_end_when_the_ratio_is_precise_whatever_it_shows(spread, monkeypatch):
    clock, rng = SimpleNamespace(ns=0), random.Random(0)
    monkeypatch.setattr("time.perf_counter_ns", lambda: clock.ns)
    monkeypatch.setattr("time.process_time", lambda: clock.ns / 1e9)
    monkeypatch.setattr("time.perf_counter", lambda: clock.ns / 1e9)
    monkeypatch.setattr(interleaved_sides, "_switches", lambda: 0)

    def arm(index):
        def step():
            clock.ns += round((1 + index) * 1e5 * (1 + spread * rng.random()))

        return interleaved_sides.Arm(
            index, SimpleNamespace(step=step, held=torch.no_grad), SimpleNamespace()
        )

    visits = interleaved_sides.Visits(
        SimpleNamespace(give=lambda index: None), lambda: None, random.Random(0)
    )
    times = visits.rounds(
        [arm(0), arm(1)], iterations=1, seconds=0.4, least=8, untimed=True, precision=precision
    )
    assert (len(times[0]) == interleaved_sides.FIRST_LOOK) is (spread == 0)
    assert clock.ns < 0.41e9


# Operations


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "no change in operations; instructions +0.0% (below 1.0%: no change)"),
        ({"operators": None, "instructions": None}, "operations not counted"),
        (
            {"operators": {"aten.mm": 3}, "instructions": None},
            "operators: -1 aten.add, +1 aten.mm",
        ),
        (
            {
                "operators": {"aten.mm": 2, "aten.add": 1, "a": 1, "b": 2, "c": 3, "d": 4},
                "instructions": None,
            },
            "operators: +4 d, +3 c, +2 b and 1 more",
        ),
        (
            {"nodes": 6, "peak_bytes": 5096, "instructions": None},
            "graph nodes +2; peak +1,000 B",
        ),
        ({"saved_bytes": None, "instructions": None}, "no change in operations"),
        (
            {"instructions": 1_003_000},
            "no change in operations; instructions +0.3% (below 1.0%: no change)",
        ),
        ({"instructions": 1_020_000}, "no change in operations; instructions +2.0%"),
        ({"nodes": 6, "instructions": 980_000}, "graph nodes +2; instructions -2.0%"),
        (
            {"operators": None, "instructions": 970_000},
            "operations not counted; instructions -3.0%",
        ),
        ({"instructions": None}, "no change in operations"),
    ],
)
def test_a_change_in_operations_is_named(change, words):
    base = {
        "operators": {"aten.mm": 2, "aten.add": 1},
        "nodes": 4,
        "saved_bytes": 64,
        "peak_bytes": 4096,
        "instructions": 1_000_000,
    }
    assert in_words(base, base | change) == words
