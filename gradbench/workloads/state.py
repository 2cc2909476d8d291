"""What a module holds beside its parameters, kept and put back: buffers, attributes, caches.

Modes share one module, for another would lie elsewhere in memory; so each visit of a mode starts
from the state in which that mode's own first step had left the module, with the same random
numbers. Parameters are not put back: an optimizer moves them, by so little that no step notices.
"""

import copy
import functools
import inspect
import itertools
import operator
import pickle
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final, Protocol, Self

import torch
from torch import Tensor, nn

from .module_parts import buffers, parameters, parts

MOST: Final = 10_000
"""Entries of a container up to which each is looked at; of a longer one the length alone is."""

_MISSING: Final = object()
OPAQUE: Final = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type)
FOREIGN: Final = frozenset(("torch", "numpy", *sys.stdlib_module_names))
"""Packages whose objects are taken as they are: their insides are nobody's hidden state."""
_METHODS: Final = (staticmethod, classmethod)
_Cache: Final = functools._lru_cache_wrapper
_OURS: Final = __name__.partition(".")[0]
_NO_DATA: Final = (*OPAQUE, nn.Module, _Cache)
_CONTAINERS: Final = (dict, list, deque, set)


class _Kept(Protocol):
    """One thing that was kept."""

    def put_back(self) -> None:
        """Make it as it was, if it is not."""


@dataclass(frozen=True, slots=True)
class _KeptDict:
    owner: dict[Any, Any]
    keys: list[Any]
    values: list[Any]

    def put_back(self) -> None:
        owner = self.owner
        if not (_same(owner.values(), self.values) and _same(owner, self.keys)):
            owner.clear()
            owner.update(zip(self.keys, self.values, strict=True))


@dataclass(frozen=True, slots=True)
class _KeptSequence:
    owner: list[Any] | deque[Any]
    values: list[Any]

    def put_back(self) -> None:
        if not _same(self.owner, self.values):
            self.owner.clear()
            self.owner.extend(self.values)


@dataclass(frozen=True, slots=True)
class _KeptSet:
    owner: set[Any]
    values: frozenset[Any]

    def put_back(self) -> None:
        if self.owner != self.values:
            self.owner.clear()
            self.owner.update(self.values)


def _same(owner: Collection[Any], values: Sequence[Any]) -> bool:
    return len(owner) == len(values) and (
        len(owner) > MOST or all(map(operator.is_, owner, values))
    )


@dataclass(frozen=True, slots=True)
class _KeptSlots:
    owner: object
    values: dict[str, Any]

    def put_back(self) -> None:
        for name, value in self.values.items():
            if getattr(self.owner, name, _MISSING) is not value:
                object.__setattr__(self.owner, name, value)  # its own may refuse to go back


@dataclass(frozen=True, slots=True)
class _KeptClass:
    """What a class holds beside its methods: a cache, a counter that its objects share."""

    owner: type
    values: dict[str, Any]

    def put_back(self) -> None:
        for name in _data_of(self.owner).keys() - self.values.keys():
            delattr(self.owner, name)
        for name, value in self.values.items():
            if vars(self.owner).get(name, _MISSING) is not value:
                setattr(self.owner, name, value)


@dataclass(frozen=True, slots=True)
class _KeptFile:
    """What stands in the file of a class beside functions and classes."""

    owner: dict[str, Any]
    values: dict[str, Any]

    def put_back(self) -> None:
        for name in _data_in(self.owner).keys() - self.values.keys():
            del self.owner[name]
        for name, value in self.values.items():
            if self.owner.get(name, _MISSING) is not value:
                self.owner[name] = value


@dataclass(frozen=True, slots=True)
class _KeptGenerator:
    write: Callable[[Any], object]
    state: Any

    def put_back(self) -> None:
        self.write(self.state)


@dataclass(slots=True)
class _KeptTensor:
    """A tensor's contents: kernels may change them unseen by its version, as BatchNorm's do."""

    owner: Tensor
    contents: Tensor
    version: int | None  # None for an inference tensor, which has none
    changes: bool = False  # does a step change the contents?

    @classmethod
    def of(cls, tensor: Tensor, *, on_host: bool) -> Self:
        contents = tensor.detach().to("cpu", copy=True) if on_host else tensor.detach().clone()
        return cls(tensor, contents, None if tensor.is_inference() else tensor._version)

    def look(self) -> None:
        """Learn whether what was done since it was kept has changed it."""
        self.changes = not torch.equal(bits(self.owner), bits(self.contents))

    @property
    def changed(self) -> bool:
        """Whether a step changes it, or has by its version."""
        return self.changes or (self.version is not None and self.owner._version != self.version)


class Snapshot:
    """The state of modules at one moment, to be put back as often as one likes.

    Kept are buffers, plain attributes, those of the user's own classes, what these lead to through
    containers and objects of such classes, generators of random numbers among them, and what the
    modules are ``given``, which some change: a cache, say. So are the names and containers that
    stand in the files of those classes. With ``on_host`` contents lie on the host, so that a
    device's memory stays as it is.

    What a function that `functools.lru_cache` wraps has kept cannot be read. It is forgotten where
    nothing was kept at first, here or in the snapshot ``since``, the one of the module as built.
    """

    def __init__(
        self,
        roots: Iterable[nn.Module],
        *,
        given: Iterable[object] = (),
        on_host: bool = False,
        since: "Snapshot | None" = None,
    ) -> None:
        roots = list(roots)
        self._on_host = on_host
        self._tensors: list[_KeptTensor] = []
        self._others: list[_Kept] = []
        self._unwatched: list[_Kept] = []  # what no container's entries show
        self._watched: list[
            Collection[Any]
        ] = []  # whose entries show at once that all is as it was
        self._caches: list[functools._lru_cache_wrapper[Any]] = (
            [] if since is None else list(since._caches)
        )
        self._seen: set[int] = {
            id(parameter) for root in roots for parameter in parameters(root)
        } | {id(sys.modules)}
        for root in roots:
            self._keep(root)
            for buffer in buffers(root):  # TorchScript's are in no dictionary
                self._keep(buffer)
        for one in given:
            self._keep(one)
        self._lengths, self._entries = self._fingerprint()

    @classmethod
    def beside(cls, roots: Iterable[nn.Module]) -> Self:
        """Return the state of modules' classes and files alone: what building leaves as it is.

        No contents of tensors are kept, and nothing that the modules hold themselves.
        """
        shared = cls(())
        for root in roots:
            for part in parts(root):
                shared._keep_containers(shared._keep_class(type(part)))
        shared._lengths, shared._entries = shared._fingerprint()
        return shared

    def look(self) -> None:
        """Learn which tensors a step changes: call it when one was made since."""
        for tensor in self._tensors:
            tensor.look()

    def put_back(self, *, forgetting: bool = True) -> None:
        """Make everything as it was."""
        if forgetting:
            self.forget()
        if self._fingerprint() != (self._lengths, self._entries):
            for other in self._others:
                other.put_back()
        for unwatched in self._unwatched:
            unwatched.put_back()
        changed = [tensor for tensor in self._tensors if tensor.changed]
        if changed:
            with torch.inference_mode():  # where inference tensors may be written, and others too
                torch._foreach_copy_([t.owner for t in changed], [t.contents for t in changed])

    def forget(self) -> bool:
        """Have functions forget the results that were kept since; return whether there were any."""
        full = [cache for cache in self._caches if cache.cache_info().currsize]
        for cache in full:
            cache.cache_clear()
        return bool(full)

    def _fingerprint(self) -> tuple[list[int], list[int]]:
        """Return how many entries each container has, and which objects they are, one after other.

        This is all that is looked at between two visits of an ordinary module: it is quick.
        """
        entries = list(map(id, itertools.chain.from_iterable(self._watched)))
        return list(map(len, self._watched)), entries

    def _keep(self, value: object) -> None:
        todo = [value]
        while todo:
            one = todo.pop()
            if id(one) not in self._seen:
                self._seen.add(id(one))
                todo += self._keep_one(one)

    def _keep_one(self, one: Any) -> Sequence[object]:  # noqa: PLR0911 # one return a kind
        """Keep an object; return what it leads to."""
        match one:
            case Tensor():
                if has_plain_contents(one):
                    self._tensors.append(_KeptTensor.of(one, on_host=self._on_host))
                return ()
            case nn.Module():
                return self._keep_module(one)
            case dict():
                return self._keep_dict(one)
            case list() | deque():
                self._others.append(_KeptSequence(one, list(one)))
                self._watch(one)
                return _few(one)
            case set():
                self._unwatched.append(_KeptSet(one, frozenset(one)))
                return ()
            case tuple():
                return _few(one)
            case threading.local():
                return self._keep_dict(vars(one))  # of this thread, in which all modes run
        generator = _generator(one)
        if generator is not None:
            self._unwatched.append(generator)
            return ()
        return self._keep_object(one)

    def _keep_dict(self, one: dict[Any, Any], *, by_key: bool = True) -> list[object]:
        self._others.append(_KeptDict(one, list(one), list(one.values())))
        self._watch(one.values())
        if by_key:
            self._watch(one.keys())
        return _few(one.values())

    def _watch(self, entries: Collection[Any]) -> None:
        """Look at these entries, or where they are too many at their number."""
        self._watched.append(entries if len(entries) <= MOST else _Counted(entries))

    def _keep_class(self, kind: type) -> list[object]:
        """Keep what the user's own classes hold among an object's; return what that leads to."""
        leads_to: list[object] = []
        for base in kind.__mro__:
            if id(base) in self._seen or is_foreign(base):
                continue
            self._seen.add(id(base))
            self._note_caches(vars(base).values())
            self._keep_file_of(base)
            data = _data_of(base)
            self._others.append(_KeptClass(base, data))
            self._watched.append(_ClassEntries(base, tuple(data)))
            leads_to += _few(data.values())
        return leads_to

    def _keep_file_of(self, kind: type) -> None:
        """Keep names and containers that stand beside a class."""
        file = _file_of(kind)
        if file is None or id(file) in self._seen:
            return
        self._seen.add(id(file))
        self._note_caches(file.values())
        data = _data_in(file)
        self._others.append(_KeptFile(file, data))
        self._watched.append(_FileEntries(file, tuple(data)))
        self._keep_containers(data.values())

    def _keep_containers(self, values: Iterable[object]) -> None:
        """Keep containers, and those in them; contents of tensors there may be a data set."""
        todo = list(values)
        while todo:
            one = todo.pop()
            if issubclass(type(one), _CONTAINERS) and id(one) not in self._seen:
                self._seen.add(id(one))
                todo += self._keep_one(one)

    def _note_caches(self, values: Iterable[object]) -> None:
        """Note which functions have kept no result yet."""
        for value in values:
            function = getattr(value, "__func__", value) if isinstance(value, _METHODS) else value
            if isinstance(function, _Cache) and not function.cache_info().currsize:
                self._caches.append(function)

    def _keep_module(self, module: nn.Module) -> list[object]:
        own = module.__dict__
        self._keep_dict(own, by_key=False)
        leads_to = self._keep_class(type(module))
        leads_to += [value for name, value in own.items() if name not in MODULES_OWN]
        for name in ("_parameters", "_buffers", "_modules"):
            part = own.get(name)  # TorchScript's are no dictionaries
            if isinstance(part, dict) and (part or not is_foreign(type(module))):
                leads_to += self._keep_dict(part, by_key=False)
        return leads_to

    def _keep_object(self, one: object) -> Sequence[object]:
        kind = type(one)
        if isinstance(one, OPAQUE) or is_foreign(kind):
            return ()
        kept_values = self._keep_class(kind)
        own = getattr(one, "__dict__", None)
        if isinstance(own, dict):
            kept_values += self._keep_dict(own)
        names = [name for base in kind.__mro__ for name in _slots(base)]
        values = {name: getattr(one, name) for name in names if hasattr(one, name)}
        if values:
            self._unwatched.append(_KeptSlots(one, values))
            kept_values += values.values()
        return kept_values


@dataclass(frozen=True, slots=True)
class _Counted:
    """Entries of which only the number is looked at."""

    entries: Collection[Any]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __contains__(self, one: object) -> bool:
        return one in self.entries


@dataclass(frozen=True, slots=True)
class _ClassEntries:
    """A class's data, of whose other entries the number alone is looked at."""

    owner: type
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(vars(self.owner))

    def __iter__(self) -> Iterator[Any]:
        return map(vars(self.owner).get, self.names)

    def __contains__(self, one: object) -> bool:
        return one in list(self)


@dataclass(frozen=True, slots=True)
class _FileEntries:
    """A file's data, of whose other names the number alone is looked at."""

    owner: dict[str, Any]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.owner)

    def __iter__(self) -> Iterator[Any]:
        return map(self.owner.get, self.names)

    def __contains__(self, one: object) -> bool:
        return one in list(self)


MODULES_OWN: Final = frozenset(nn.Module().__dict__) - {"training"}
"""What every module has: dictionaries of parameters, hooks and the like."""


def is_foreign(kind: type) -> bool:
    """Return whether a class is torch's, NumPy's or Python's own, and not a user's."""
    return kind.__module__.partition(".")[0] in FOREIGN


def _data_of(kind: type) -> dict[str, Any]:
    """Return what a class holds that is no method, no property and none of Python's own names."""
    return {
        name: value
        for name, value in vars(kind).items()
        if not (name.startswith("__") or name == "_abc_impl" or hasattr(type(value), "__get__"))
    }


def _data_in(file: dict[str, Any]) -> dict[str, Any]:
    """Return what is no function, class or module in a file, and has no name of Python's."""
    return {
        name: value
        for name, value in file.items()
        if not (name.startswith("__") or issubclass(type(value), _NO_DATA))
    }


def _file_of(kind: type) -> dict[str, Any] | None:
    """Return the names that a class's own methods see as global; None for none, or for ours."""
    for method in vars(kind).values():
        function = getattr(method, "__func__", method) if isinstance(method, _METHODS) else method
        if not isinstance(function, FunctionType):
            continue
        names: dict[str, Any] = inspect.unwrap(function).__globals__
        if str(names.get("__name__", "")).partition(".")[0] not in (*FOREIGN, _OURS):
            return names
    return None


def _generator(one: object) -> _KeptGenerator | None:
    """Return the state of a generator of random numbers, None of what is none."""
    if isinstance(one, random.Random):
        return _KeptGenerator(one.setstate, one.getstate())
    if isinstance(one, torch.Generator):
        return _KeptGenerator(one.set_state, one.get_state())
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is None:
        return None
    if isinstance(one, numpy.RandomState):
        return _KeptGenerator(one.set_state, one.get_state())
    if isinstance(one, numpy.Generator):
        one = one.bit_generator
    if isinstance(one, numpy.BitGenerator):
        return _KeptGenerator(partial(setattr, one, "state"), one.state)
    return None


def _slots(kind: type) -> Iterator[str]:
    """Yield the names of a class's slots, private ones as they are to be asked for."""
    names = kind.__dict__.get("__slots__", ())
    for name in (names,) if isinstance(names, str) else names:
        if name.startswith("__") and not name.endswith("__"):
            yield f"_{kind.__name__.lstrip('_')}{name}"
        elif name not in ("__dict__", "__weakref__"):
            yield name


def own_attributes(one: object) -> dict[str, Any]:
    """Return what an object of a user's own class holds by name; {} of torch's and of Python's."""
    kind = type(one)
    if isinstance(one, OPAQUE) or is_foreign(kind):
        return {}
    slots = {
        name: getattr(one, name)
        for base in kind.__mro__
        for name in _slots(base)
        if hasattr(one, name)
    }
    return slots | dict(getattr(one, "__dict__", {}))


def _few(values: Iterable[object]) -> list[object]:
    """Return the values, or none of them where they are too many to be looked at."""
    first = list(itertools.islice(values, MOST + 1))
    return first if len(first) <= MOST else []


def has_plain_contents(tensor: Tensor) -> bool:
    """Return whether a copy can be made of the contents, and written back."""
    return (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
        and not tensor.is_meta
        and tensor.grad_fn is None
        and not any(
            stride == 0 and size > 1
            for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
        )
    )


def bits(tensor: Tensor) -> Tensor:
    """Return the contents as whole numbers on the host, for NaN differs from itself."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8)


@dataclass(frozen=True, slots=True)
class _Source:
    """One global generator of random numbers."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


class RandomNumbers:
    """What everybody draws from: torch's generators, the devices', Python's, numpy's.

    ``put_back`` brings them to the last ``mark``, so that what follows draws the same again.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        devices = sorted({tensor.device for tensor in tensors}, key=str)
        self._sources = [
            _TORCH,
            _Source("python", random.getstate, random.setstate),
            *(source for source in map(_source_of, devices) if source is not _TORCH),
        ]
        if "numpy" in sys.modules:
            numpy: Any = sys.modules["numpy"]
            self._sources.append(_Source("numpy", numpy.random.get_state, numpy.random.set_state))
        self._drawn_from: set[int] = set()
        self._states: list[Any] = []
        self.mark()

    def mark(self) -> None:
        """Keep the states as they are."""
        self._states = [source.read() for source in self._sources]

    def put_back(self) -> None:
        """Bring the states to the last mark."""
        for source, state in zip(self._sources, self._states, strict=True):
            source.write(state)

    def look(self) -> None:
        """Learn who was drawn from since the last mark."""
        self._drawn_from |= {
            index
            for index, (source, state) in enumerate(zip(self._sources, self._states, strict=True))
            if not _same_state(source.read(), state)
        }

    @property
    def drawn_from(self) -> tuple[str, ...]:
        """Whom somebody was seen to draw from: ``torch``, ``cuda:0``, ``python``, ``numpy``."""
        return tuple(
            source.name for index, source in enumerate(self._sources) if index in self._drawn_from
        )

    def used(self) -> "RandomNumbers":
        """Return those that were seen to be drawn from, and torch's, which cost least."""
        few = copy.copy(self)
        few._sources = [
            source
            for index, source in enumerate(self._sources)
            if index in self._drawn_from or index == 0
        ]
        few.mark()
        return few


def _same_state(one: Any, other: Any) -> bool:
    """Return whether two states are equal; tensors do not pickle to the same bytes twice."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return pickle.dumps(one) == pickle.dumps(other)


_TORCH: Final = _Source("torch", torch.get_rng_state, torch.set_rng_state)


def seed_all(seed: int) -> None:
    """Let every generator begin anew: Python seeds its own after each fork, by the clock."""
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        numpy: Any = sys.modules["numpy"]
        numpy.random.seed(seed % 2**32)


def _source_of(device: torch.device) -> _Source:
    accelerator: Any = getattr(torch, device.type, None)
    if not hasattr(accelerator, "get_rng_state"):  # the CPU's is torch's own
        return _TORCH
    return _Source(
        str(device),
        partial(accelerator.get_rng_state, device),
        lambda state: accelerator.set_rng_state(state, device),
    )
