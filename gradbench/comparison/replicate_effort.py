"""What a replicate of a comparison spends on a cell, and how."""

from dataclasses import dataclass

from ..errors import BadSetting
from ..experiment.plan import MOST_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Replication:
    """What a replicate spends on a cell, and how."""

    warm_up_s: float = 0.05
    limit_s: float = 120.0  # for any one answer about a cell; then the process is killed
    one_process: bool = True  # where that can be
    share: bool = True  # weights and batch, where they are equal
    cell_s: float = 0.4  # of CPU time, of both sides' rounds in one process
    least_rounds: int = 8
    pair_s: float = 0.4  # of both sides' turns in a pair: fewer of them where steps are long
    slice_s: float = 0.003  # of one side's turn in a pair
    turns: int = 24  # of each side in a pair, at most
    least_turns: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.limit_s <= MOST_S:
            words = f"is a number of seconds above 0, {MOST_S:g} at most, not {self.limit_s!r}"
            raise BadSetting("limit_s", words)
