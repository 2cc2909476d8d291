"""Which machines may measure that join while others do: on a scripted Ray."""

from types import SimpleNamespace

import pytest

from gradbench.cluster import machine_facts, node_facts
from gradbench.cluster.machine_facts import MachineFacts
from gradbench.errors import GradbenchError


class RayError(Exception):
    pass


class ScriptedRay:
    """Machines by name, each with what it answers: its facts, an error, or None for not yet."""

    exceptions = SimpleNamespace(RayError=RayError)
    cloudpickle = SimpleNamespace(register_pickle_by_value=lambda _module: None)

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def nodes(self):
        return [
            {"NodeID": name, "Alive": True, "NodeManagerHostname": name, "Resources": {}}
            for name in self.answers
        ]

    def remote(self, _function):
        return SimpleNamespace(options=self._options)

    def _options(self, *, scheduling_strategy, **_):
        def ask():
            self.asked.append(scheduling_strategy)
            return scheduling_strategy

        return SimpleNamespace(remote=ask)

    def wait(self, names, timeout):
        return [name for name in names if self.answers[name] is not None], []

    def get(self, name, timeout=None):
        if isinstance(self.answers[name], Exception):
            raise self.answers[name]
        return self.answers[name]


@pytest.fixture(autouse=True)
def by_name(monkeypatch):
    monkeypatch.setattr(machine_facts, "only_on", lambda node: node["NodeID"])
    monkeypatch.setattr(machine_facts, "NOTICED_S", 0.0)
    monkeypatch.setattr(machine_facts, "PAUSE_S", 0.0)


def like_this(host, **versions):
    return {**node_facts.versions(), "host": host, **versions}


def may(ray, facts):
    return [node["NodeID"] for node in ray.nodes() if facts.may_measure(node)]


def test_a_machine_that_joins_measures_when_it_has_said_that_it_is_alike():
    ray, said = ScriptedRay(first=like_this("first")), []
    facts = MachineFacts(ray, say=said.append)
    facts.refuse_unlike()
    ray.answers["late"] = None
    assert may(ray, facts) == ["first"]
    ray.answers["late"] = like_this("late")
    assert may(ray, facts) == may(ray, facts) == ["first", "late"]
    assert ray.asked == ["first", "late"]  # once each
    assert facts.of("late")["host"] == "late"
    assert said == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (like_this("late", torch="1.0"), "late has torch 1.0, here "),
        (like_this("late", gradbench="none (none)"), "late has no gradbench"),
        (like_this("late", torch="none"), "late has no torch"),
        (RayError("no such interpreter"), "late does not say what is installed there: no such"),
    ],
)
def test_one_that_joins_and_is_unlike_is_left_out_and_that_is_said_once(answer, words):
    ray, said = ScriptedRay(first=like_this("first")), []
    facts = MachineFacts(ray, say=said.append)
    facts.refuse_unlike()
    ray.answers["late"] = answer
    assert may(ray, facts) == may(ray, facts) == ["first"]
    (line,) = said
    assert line.startswith(words) and line.endswith(": it joined, and is left out")


def test_another_version_is_allowed_where_that_was_asked_for():
    other = like_this("odd", torch="1.0")
    facts = MachineFacts(ScriptedRay(odd=other), say=pytest.fail)
    with pytest.raises(GradbenchError, match=r"odd has torch 1\.0, here .*--allow-different"):
        facts.refuse_unlike()
    facts.refuse_unlike(allowed=True)


@pytest.mark.parametrize(
    ("has", "lacks"), [({"gradbench": "none (none)"}, "gradbench"), ({"torch": "none"}, "torch")]
)
def test_a_machine_without_what_measures_is_never_allowed(has, lacks):
    facts = MachineFacts(ScriptedRay(bare=like_this("bare", **has)), say=pytest.fail)
    with pytest.raises(GradbenchError, match=rf"^bare has no {lacks}: install it there$"):
        facts.refuse_unlike(allowed=True)


def test_a_checkout_that_nobody_installed_is_a_gradbench_too(monkeypatch):
    bare = like_this("bare", gradbench=f"none ({node_facts._sources()})")
    monkeypatch.setattr(node_facts, "versions", lambda: {"gradbench": bare["gradbench"]})
    MachineFacts(ScriptedRay(bare=bare), say=pytest.fail).refuse_unlike()


def test_all_machines_are_asked_before_the_first_is_waited_for():
    ray = ScriptedRay(first=like_this("first"), second=like_this("second"))
    waited_for, get = [], ray.get
    ray.get = lambda name, timeout: waited_for.append(list(ray.asked)) or get(name)
    MachineFacts(ray, say=pytest.fail).refuse_unlike()
    assert waited_for == [["first", "second"]] * 2
