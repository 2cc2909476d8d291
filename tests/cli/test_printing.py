"""The command that goes on with a run is the one that began it, where it matters."""

import pytest
from builders import run_at

from gradbench.cli.printing import resume_command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ""),
        (["--on", "ray"], " --on ray"),
        (["--on=ray", "--address=10.0.0.7:6379"], " --on ray --address 10.0.0.7:6379"),
        (["--address", "ray://a b", "--on", "ray"], " --on ray --address 'ray://a b'"),
        (["--on", "slurm", "--tasks", "2"], ""),
    ],
)
def test_a_run_goes_on_where_it_was_begun(options, words):
    run = run_at(1, command=["gradbench", "run", *options])
    assert resume_command(run) == f"gradbench run --resume {run.name}{words}"
