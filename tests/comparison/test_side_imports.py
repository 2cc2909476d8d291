"""Two trees' modules in one process: whatever a tree does with modules, it meets its own."""

import dataclasses
import importlib
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gradbench.comparison import side_imports

NAMES = ("base", "candidate")

SHOP = {
    "shop/__init__.py": "from .names import NAME\nfrom . import state\n",
    "shop/names.py": "NAME = {name!r}\n",
    "shop/state.py": "calls = 0\n",
    "shop/nets.py": """
import dataclasses
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from . import names, state


@dataclasses.dataclass
class Config:
    name: str


def forward():
    from .late import LATE  # not before the first call
    import shop.later as later
    state.calls += 1
    return names.NAME, LATE, later.LATER, state.calls


def reloaded():
    return importlib.reload(names).NAME


def asked_of_sys_modules():
    return sys.modules[__name__].names.NAME, sys.modules["shop"].NAME


def caller():
    import __main__
    return __main__
""",
    "shop/late.py": "LATE = 'late ' + {name!r}\n",
    "shop/later.py": "LATER = 'later ' + {name!r}\n",
    "itself.py": """
import sys
from pathlib import Path
from types import ModuleType


class Itself:
    name = {name!r}


sys.modules[__name__] = Itself()
""",
    "paths.py": """
import sys
from pathlib import Path
from types import ModuleType
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "vendored"))
import vendored
NAME = vendored.NAME
""",
    "vendored/vendored.py": "NAME = 'vendored ' + {name!r}\n",
    "portion/mine/inside.py": "NAME = {name!r}\n",
    "env/lib/site-packages/installed_in_a_tree.py": "",
}


@pytest.fixture
def turns(tmp_path):
    """Two trees of the same modules, each with its own name in them; nothing of them is left."""
    before = dict(sys.modules), list(sys.path), list(sys.meta_path)
    roots = []
    for name in NAMES:
        root = tmp_path / name
        for path, text in SHOP.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("{name!r}", repr(name)), "utf-8")
        roots.append(root)
    yield side_imports.Turns([side_imports.tree(root, [str(root)]) for root in roots])
    sys.modules.clear()
    sys.modules.update(before[0])
    sys.path[:], sys.meta_path[:] = before[1:]


def on_both(turns, function):
    """Return what a function returns in each tree's turn."""
    found = []
    for index in range(len(NAMES)):
        with turns.turn(index):
            found.append(function())
    return tuple(found)


def nets():
    return importlib.import_module("shop.nets")


def test_each_side_finds_its_own_modules_also_those_imported_in_the_midst_of_a_step(turns):
    modules = on_both(turns, nets)
    for call in (1, 2, 3):
        for index, name in enumerate(NAMES):
            with turns.turn(index):
                found = modules[index].forward()
            assert found == (name, f"late {name}", f"later {name}", call)
    assert on_both(turns, lambda: nets().asked_of_sys_modules()) == tuple(
        (name, name) for name in NAMES
    )


def test_between_turns_nothing_of_either_is_left(turns):
    path, known = list(sys.path), set(sys.modules)
    on_both(turns, lambda: nets().forward())
    assert (sys.path, {name for name in sys.modules if name.startswith("shop")}) == (path, set())
    assert known <= set(sys.modules)


def test_a_module_that_is_reloaded_comes_from_its_own_tree(turns):
    on_both(turns, nets)
    assert on_both(turns, lambda: nets().reloaded()) == NAMES


def test_objects_are_pickled_by_the_names_of_their_own_side(turns):
    def through_a_pickle():
        config = nets().Config("x")
        again = pickle.loads(pickle.dumps(config))
        assert type(again) is nets().Config
        return dataclasses.replace(again, name="y"), type(again)

    (one, kind), (other, another) = on_both(turns, through_a_pickle)
    assert (one.name, other.name, kind is another) == ("y", "y", False)


def test_the_main_module_is_the_process_s_for_both(turns):
    main = sys.modules["__main__"]
    assert on_both(turns, lambda: nets().caller()) == (main, main)


def test_an_object_in_a_module_s_place_is_its_tree_s_too(turns):
    assert on_both(turns, lambda: importlib.import_module("itself").name) == NAMES
    assert on_both(turns, lambda: importlib.import_module("itself").name) == NAMES
    assert "itself" not in sys.modules


def test_a_path_that_a_tree_adds_is_its_own(turns):
    expected = tuple(f"vendored {name}" for name in NAMES)
    assert on_both(turns, lambda: importlib.import_module("paths").NAME) == expected
    assert on_both(turns, lambda: importlib.import_module("vendored").NAME) == expected
    assert not any("vendored" in path for path in sys.path)


def test_what_a_tree_takes_out_of_sys_modules_is_imported_anew(turns):
    def forgotten():
        first = nets()
        del sys.modules["shop.nets"]
        return first

    before = on_both(turns, forgotten)
    after = on_both(turns, nets)
    assert not set(map(id, before)) & set(map(id, after))
    assert on_both(turns, nets) == after


def test_a_part_of_a_package_that_both_share_is_found_on_its_own_side(turns, tmp_path, monkeypatch):
    shared = tmp_path / "installed" / "portion" / "common"
    shared.mkdir(parents=True)
    (shared / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    importlib.import_module("portion.common")  # so that the package is there, and nobody's
    roots = [tmp_path / name for name in NAMES]
    again = side_imports.Turns([side_imports.tree(root, [str(root)]) for root in roots])

    def by_attribute():
        importlib.import_module("portion.mine.inside")
        return sys.modules["portion"].mine.inside.NAME

    assert on_both(again, by_attribute) == NAMES
    assert on_both(again, by_attribute) == NAMES


def test_what_is_installed_in_an_environment_within_the_tree_is_shared(turns, tmp_path):
    tree = turns.trees[0]
    assert tree.holds(f"{tree.root}/shop/nets.py")
    assert not tree.holds(f"{tree.root}/env/lib/site-packages/installed_in_a_tree.py")
    assert not tree.holds(f"{tree.root}2/shop/nets.py")


def test_a_compiled_module_of_a_tree_is_named(turns):
    loader = importlib.machinery.ExtensionFileLoader("shop._C", f"{turns.trees[0].root}/shop/_C.so")
    compiled = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("plain", None))
    compiled.__spec__ = importlib.machinery.ModuleSpec("shop._C", loader)
    compiled.__file__ = f"{turns.trees[0].root}/shop/_C.so"
    with turns.turn(0):
        nets()
        sys.modules["shop._C"] = compiled
    assert turns.trees[0].extensions() == ["shop._C"]
    assert turns.trees[1].extensions() == []


def test_each_side_stands_in_its_own_tree_and_stays_where_its_code_has_gone(turns, tmp_path):
    stood = Path.cwd()
    base, candidate = (tmp_path / name for name in NAMES)
    assert on_both(turns, Path.cwd) == (base, candidate)
    with turns.turn(0):
        os.chdir(base / "shop")
    assert on_both(turns, Path.cwd) == (base / "shop", candidate)
    assert Path.cwd() == stood
    shutil.rmtree(base)
    assert on_both(turns, lambda: None) == (None, None)


def test_what_the_path_has_of_the_user_s_checkout_each_tree_has_for_itself(tmp_path, monkeypatch):
    home, base = tmp_path / "candidate", tmp_path / "base"
    installed = home / "env" / "lib" / "site-packages"
    for folder in (installed, home / "libs" / "other", base / "libs" / "other", home / "new"):
        folder.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(home / "libs" / "other")
    folders = [home, link, home / "new", installed, tmp_path]
    monkeypatch.setattr(sys, "path", list(map(str, folders)))
    of_base = side_imports.tree(base, [str(base)], home=str(home))
    assert of_base.path == list(map(str, [base, base / "libs" / "other", installed, tmp_path]))
    of_candidate = side_imports.tree(home, [str(home)])
    assert of_candidate.path == list(map(str, folders))


def test_a_folder_of_the_checkout_that_is_the_environment_of_all_is_kept(tmp_path, monkeypatch):
    home, base = tmp_path / "candidate", tmp_path / "base"
    for folder in (home / "libs" / "other", home / "new", base):
        folder.mkdir(parents=True)
    folders = list(map(str, [home, home / "libs", home / "libs" / "other", home / "new"]))
    monkeypatch.setattr(sys, "path", folders)
    kept = [str(home / "libs")]
    of_base = side_imports.tree(base, [str(base)], home=str(home), environment=kept)
    assert of_base.path == [str(base), str(home / "libs")]
    of_candidate = side_imports.tree(home, [str(home)], environment=kept)
    assert of_candidate.path == folders
    assert not of_candidate.holds(str(home / "libs" / "lib.py"))
    assert of_candidate.holds(str(home / "libs.py"))


def test_a_module_that_comes_as_another_goes_is_its_tree_s_own(turns):
    on_both(turns, nets)
    sys.modules["gone_of_a_test"] = ModuleType("gone_of_a_test")
    with turns.turn(0):
        del sys.modules["gone_of_a_test"]
        importlib.import_module("shop.later")
    found = on_both(turns, lambda: importlib.import_module("shop.later").LATER)
    assert found == ("later base", "later candidate")


def test_a_link_in_a_tree_that_leads_elsewhere_is_known(turns, tmp_path):
    base = turns.trees[0]
    (tmp_path / "base" / "link.py").symlink_to(tmp_path / "candidate" / "paths.py")
    (tmp_path / "base" / "inner.py").symlink_to(tmp_path / "base" / "paths.py")
    led = [name for name in ("link.py", "inner.py", "paths.py")
           if base.leads_out(str(tmp_path / "base" / name))]  # fmt: skip
    assert led == ["link.py"]
