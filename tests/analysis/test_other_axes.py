"""What checkpointing, autocast and torch.compile did, in sentences."""

from dataclasses import replace

from builders import block, broken_down, cell, counted, measured_block, run, timed

from gradbench.analysis import checkpointing, compilations, other_axes
from gradbench.analysis.run_view import View

PLAIN = cell(workload="training")
AGAIN = replace(PLAIN, checkpointing="blocks")


def noted(measurement, **notes):
    return replace(measurement, notes=notes)


def trained(time, memory, one, **notes):
    return [timed(one, [time] * 12), noted(counted(one, memory), **notes)]


def test_a_checkpointed_cell_stands_beside_its_plain_one_with_what_is_computed_again():
    blocks = "8 blocks, 4 to 11"
    both = run([*trained(2000, 4096, PLAIN), *trained(3000, 1024, AGAIN, checkpointed=blocks)])
    assert other_axes.sentences(View(both)) == [
        "checkpointing, over the same cells without: training[cpu-mlp_tiny-b8-checkpointed]: "
        "global_on memory ×0.250, time ×1.500; computed again: 8 blocks, 4 to 11"
    ]


def test_without_the_plain_cell_nothing_is_compared():
    assert other_axes.sentences(View(run(trained(3000, 1024, AGAIN)))) == []
    alone = View(run(measured_block(workload="training", checkpointing="blocks")))
    assert list(checkpointing.panels(alone)) == [AGAIN.block]


def test_cells_that_differ_in_checkpointing_alone_are_in_one_panel():
    both = [*trained(2, 2, AGAIN), *trained(2, 2, PLAIN), *measured_block(batch_size=2)]
    panels = checkpointing.panels(View(run(both)))
    assert {block: len(cells) for block, cells in panels.items()} == {
        PLAIN.block: 2,
        cell(batch_size=2).block: 4,
    }


def test_casts_are_counted_by_mode_with_their_most_bytes_and_those_at_the_peak():
    on, *_, inference = block(autocast="bfloat16")
    held = replace(broken_down(on, casts=4096, parameters=8), casts=9)
    gone = replace(broken_down(inference, parameters=8), casts=1)
    gone = replace(gone, timeline=gone.timeline | {"casts": (0, 0, 512)})
    assert other_axes.sentences(View(run([held, gone]))) == [
        "autocast: casts in a step, their bytes at once at most (at the peak): "
        "inference[cpu-mlp_tiny-b8-autocast_bfloat16]: global_on 9 casts, 4 KiB (4 KiB); "
        "inference_mode 1 cast, 512 B (0 B)"
    ]


def test_the_modes_of_a_compiled_block_say_what_was_compiled_and_what_again():
    made = {"global_on": (8, 2, 1, 0), "global_off": (1, 2, 1, 3), "no_grad": (0, 0, 0, 0)}
    outcomes = [
        noted(
            replace(counted(cell(mode, compile="default"), seconds * 10**9), unit="ns"),
            graphs=graphs,
            graph_breaks=breaks,
            recompilations=again,
        )
        for mode, (seconds, graphs, breaks, again) in made.items()
    ]
    view = View(run(replace(one, meter=compilations.COMPILE_TIME) for one in outcomes))
    assert other_axes.sentences(view) == [
        "torch.compile, the first step less the typical one: inference[cpu-mlp_tiny-b8-compiled]: "
        "global_on 8 s (2 graphs, 1 graph break); global_off 1 s (2 graphs, 1 graph break, "
        "3 recompilations); no_grad 0 ns (nothing compiled again)"
    ]
    value = compilations.value(view, cell("global_off", compile="default"))
    assert (value.text, value.detail) == ("1 s", "2 graphs, 1 graph break, 3 recompilations")


def test_a_run_of_defaults_has_no_such_sentence():
    assert other_axes.sentences(View(run(measured_block()))) == []
