"""What a tree leaves in a process, and which of it keeps two versions apart."""

import gc
import importlib
import logging
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from two_trees import written

from gradbench.comparison import checkouts, shared_state, side_imports
from gradbench.comparison.replicate_effort import Replication
from gradbench.comparison.replication import Replicator
from gradbench.comparison.shared_state import bindings as module_bindings, places_of_code
from gradbench.comparison.sharing import obstacle
from gradbench.experiment.matrix import AXES, Cell

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


@pytest.fixture
def one_tree(watched, monkeypatch):
    """The tree, in a process of which few other modules are looked into."""
    few = FewModules()
    for one in (shared_state, module_bindings, places_of_code):
        monkeypatch.setattr(one, "sys", few)
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
