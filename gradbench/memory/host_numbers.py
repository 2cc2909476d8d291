"""The random numbers of Python and NumPy, which a step on fake tensors draws as a real one does."""

import pickle
import random
import sys
from typing import Any


class HostNumbers:
    """Where both generators stood when this was made."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy: Any = sys.modules.get("numpy")
        self._numpys = self._numpy.random.get_state(legacy=False) if self._numpy else None

    def put_back(self) -> None:
        """Let what follows draw the same again: so does each step that is measured."""
        random.setstate(self._python)
        if self._numpy:
            self._numpy.random.set_state(self._numpys)

    @property
    def drawn(self) -> bool:
        """Whether any was drawn since they were put back."""
        if random.getstate() != self._python:
            return True
        if not self._numpy:
            return False
        now = self._numpy.random.get_state(legacy=False)
        return pickle.dumps(now) != pickle.dumps(self._numpys)
