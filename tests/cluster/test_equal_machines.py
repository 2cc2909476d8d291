"""Which machines a comparison is made on: of one kind, the largest group of them."""

import pytest

from gradbench.cluster.equal_machines import EqualMachines
from gradbench.errors import GradbenchError

CPU, GPU = frozenset({""}), frozenset({"", "GPU"})


def facts(host, **changes):
    usual = {
        "host": host,
        "processor": "EPYC",
        "cores": "8",
        "accelerator": "",
        "torch build": "2.13.0+cpu",
        "python release": "3.11.7",
    }
    return usual | {name.replace("_", " "): value for name, value in changes.items()}


class KnownMachines:
    def __init__(self, known, has=None):
        self.known, self.has = known, {} if has is None else has

    def machines(self):
        return {name: self.has.get(name, CPU) for name in self.known}

    def facts(self, machine):
        if self.known[machine] == "silent":
            raise GradbenchError("it does not say")
        return self.known[machine]

    def slots(self, machine, resource):
        return [(machine, resource)]

    def pause(self, slots):
        pass


def group(known, *, has=None, resource="", fewest=2):
    return EqualMachines(KnownMachines(known, has), resource=resource, fewest=fewest)


@pytest.mark.parametrize(
    "other",
    [
        {"processor": "Xeon"},
        {"cores": "16"},
        {"torch_build": "2.13.0+cu130"},
        {"python_release": "3.11.9"},
        {"accelerator": "A100"},
    ],
)
def test_the_largest_group_of_equal_machines_is_used_and_a_line_says_what_is_left_out(other):
    known = {name: facts(name) for name in "abc"} | {"d": facts("d", **other)}
    found = group(known)
    assert set(found.machines()) == {"a", "b", "c"}
    assert (found.count, found.is_spread) == (3, True)
    (line,) = found.left_out
    assert line.startswith("d: ") and next(iter(other.values())) in line


def test_two_nodes_on_one_host_are_one_machine():
    known = {"a": facts("one"), "b": facts("one"), "c": facts("two")}
    assert group(known).count == 2


def test_of_a_small_group_one_is_measured_on_and_another_when_it_is_lost():
    known = {name: facts(name) for name in "ab"}
    found = group(known, fewest=5)
    assert not found.is_spread
    (first,) = found.machines()
    known.pop(first)
    (second,) = found.machines()
    assert {first, second} == {"a", "b"}


def test_a_machine_of_the_kind_that_joins_takes_part_and_another_or_a_silent_one_does_not():
    known = {name: facts(name) for name in "ab"}
    found = group(known)
    known |= {"c": facts("c"), "d": facts("d", cores="2"), "e": "silent", "f": None}
    assert set(found.machines()) == {"a", "b", "c"}


def test_only_machines_that_have_the_resource_count():
    known = {name: facts(name) for name in "abcd"}
    found = group(known, has={"c": GPU, "d": GPU}, resource="GPU")
    assert found.machines() == {"c": frozenset({"GPU"}), "d": frozenset({"GPU"})}


def test_where_no_machine_has_it_those_that_come_are_waited_for():
    known, has = {"a": facts("a")}, {}
    found = EqualMachines(KnownMachines(known, has), resource="GPU", fewest=2)
    assert (found.machines(), found.count, found.is_spread) == ({}, 0, False)
    known |= {name: facts(name) for name in "bcd"}
    has |= dict.fromkeys("bcd", GPU)
    assert len(found.machines()) == 1  # nobody counted on blocks
    assert not found.is_spread


def test_what_decides_a_machine_s_times_is_known_by_its_host():
    found = group({"a": facts("a", cores="4"), "b": facts("b", cores="4")})
    assert found.kind_of("b")["cores"] == "4"
    assert found.kind_of("elsewhere") is None
    assert found.in_words() == "EPYC, 4 cores, torch 2.13.0+cpu, Python 3.11.7"
