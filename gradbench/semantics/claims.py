"""What the article says, claim by claim in our words, with what is true and the proof that decides.

The article is the one that this project grew out of. Its sentences are counted by section and
paragraph, its listings' comments from the top.
"""

from typing import Final

from . import claim_proofs as proofs
from .proof import Claim

CLAIMS: Final = (
    # --- title, introduction
    Claim(
        id="only-a-function",
        place="title",
        says="set_grad_enabled is a function, and `with` belongs to other tools",
        truth="it is function, context manager and decorator at once",
        proof=proofs.only_a_function,
    ),
    Claim(
        id="two-ways-only",
        place="left out: inference_mode",
        says="set_grad_enabled(False) and no_grad are the ways to turn recording off",
        truth="inference_mode is a third, with a bit of its own, and marks every tensor made in it",
        proof=proofs.two_ways_only,
    ),
    Claim(
        id="graph-is-controlled",
        place="introduction, sentence 1",
        says="with a context manager one controls exactly where a graph is built",
        truth="results are cut off, but a view made inside still says that it requires grad",
        proof=proofs.graph_is_controlled,
    ),
    Claim(
        id="on-everywhere",
        place="introduction, sentence 3",
        says="set_grad_enabled(True) turns gradients on globally",
        truth="it sets a bit of the calling thread; other threads keep theirs",
        proof=proofs.on_everywhere,
    ),
    Claim(
        id="within-a-block",
        place="introduction, sentence 3",
        says="no_grad acts on the code of one block",
        truth="it acts while the block runs: on functions called from it too, and on the caller of "
        "a generator that is suspended in it",
        proof=proofs.within_a_block,
    ),
    Claim(
        id="accurate-training",
        place="introduction, sentence 4",
        says="the modes bear on how accurate training is",
        truth="they never change a forward value; what can go missing, silently, are gradients",
        proof=proofs.changes_results,
    ),
    # --- section 1, paragraph 1
    Claim(
        id="runtime-switch",
        place="section 1, paragraph 1, sentence 1",
        says="it is one switch for the whole runtime",
        truth="each thread has its own pair of bits, and a new thread starts with grad on",
        proof=proofs.runtime_wide_switch,
    ),
    Claim(
        id="everything-tracked",
        place="section 1, paragraph 1, sentence 2",
        says="once it is True, every later operation is tracked",
        truth="only operations with an input that requires grad and a result that can have one",
        proof=proofs.everything_is_tracked,
    ),
    Claim(
        id="graph-for-backward",
        place="section 1, paragraph 1, sentence 2",
        says="what is tracked becomes the graph that backward() needs",
        truth="so it is: from grad_fn to the accumulator of each leaf",
        proof=proofs.graph_for_backward,
    ),
    Claim(
        id="on-by-default",
        place="section 1, paragraph 1, sentence 3",
        says="a program starts with grad on",
        truth="so it does, and so does every new thread",
        proof=proofs.on_by_default,
        alone=True,
    ),
    Claim(
        id="entirely-off",
        place="section 1, paragraph 1, sentence 4",
        says="False turns tracking off entirely",
        truth="nothing is recorded for backward; forward-mode derivatives go on, and views still "
        "say that they require grad",
        proof=proofs.entirely_off,
    ),
    Claim(
        id="less-memory",
        place="section 1, paragraph 1, sentence 4",
        says="False takes significantly less memory",
        truth="it grows with depth where parameters require grad; where none does, there is "
        "nothing to save",
        proof=proofs.less_memory,
        about="memory",
        alone=True,
    ),
    Claim(
        id="less-overhead",
        place="section 1, paragraph 1, sentence 4",
        says="False takes significantly less computation",
        truth="a time is not proved by one run: see the measured cells",
        about="speed",
    ),
    Claim(
        id="for-inference",
        place="section 1, paragraph 1, sentence 5",
        says="it is what inference wants",
        truth="nothing is kept for backward, but dropout and BatchNorm are eval()'s business, "
        "whatever the mode",
        proof=proofs.useful_for_inference,
        about="memory",
    ),
    Claim(
        id="for-pretrained",
        place="section 1, paragraph 1, sentence 5",
        says="it helps with pre-trained models that need no gradients",
        truth="as long as their parameters require grad, as they do when loaded; once they are "
        "frozen there is nothing left to save",
        proof=proofs.useful_when_pretrained,
        about="memory",
    ),
    # --- section 1, paragraph 2
    Claim(
        id="temporary",
        place="section 1, paragraph 2, sentences 1 and 2",
        says="no_grad is temporary: it ends with its block",
        truth="it puts back what was there, on or off, also when the block raises",
        proof=proofs.temporary,
    ),
    Claim(
        id="no-graph-in-block",
        place="section 1, paragraph 2, sentence 3",
        says="inside no_grad no graph is built, even where grad is on outside",
        truth="unless something in the block turns it on: enable_grad, or a derivative that is to "
        "be differentiated again",
        proof=proofs.no_graph_in_the_block,
    ),
    Claim(
        id="selective-is-crucial",
        place="section 1, paragraph 2, sentence 4",
        says="turning it off in chosen places is crucial for memory and speed",
        truth="how much it matters depends on the model: see the measured cells",
        about="memory",
    ),
    # --- section 1, paragraph 3
    Claim(
        id="hierarchy",
        place="section 1, paragraph 3, sentence 1",
        says="a global setting and blocks form a hierarchy",
        truth="there is one bit, and whoever wrote it last decides",
        proof=proofs.hierarchy,
    ),
    Claim(
        id="sets-global-state",
        place="section 1, paragraph 3, sentence 2",
        says="the call sets the global state",
        truth="called inside a block it is undone when the block ends",
        proof=proofs.sets_a_global_state,
    ),
    Claim(
        id="block-overrides",
        place="section 1, paragraph 3, sentence 3",
        says="a no_grad block overrides a True set before it",
        truth="so it does",
        proof=proofs.block_overrides,
    ),
    Claim(
        id="no-grad-under-off",
        place="section 1, paragraph 3, sentence 4",
        says="where grad is off already, entering no_grad changes nothing",
        truth="so it is",
        proof=proofs.nothing_changes_when_off,
    ),
    Claim(
        id="default-and-exceptions",
        place="section 1, paragraph 3, sentences 5 and 6",
        says="the call gives a default, blocks the exceptions from it",
        truth="a call inside a block overrules the block as well",
        proof=proofs.default_and_exceptions,
    ),
    # --- listing 1
    Claim(
        id="listing-1-first-call",
        place="listing 1, comment 1",
        says="the first call turns tracking on",
        truth="it was on already: the call does nothing",
        proof=proofs.first_call_enables,
    ),
    Claim(
        id="listing-1-inside-raises",
        place="listing 1, comment 3",
        says="backward() on the block's result would raise, as it is untracked inside the block",
        truth="it raises inside and outside: the result never gets a graph",
        proof=proofs.fails_inside_the_block,
    ),
    Claim(
        id="listing-1-tracked-after",
        place="listing 1, comment 4",
        says="what is computed from the block's result after the block is tracked",
        truth="grad is on, but its only input requires no gradient",
        proof=proofs.tracked_after_the_block,
    ),
    Claim(
        id="listing-1-gradients",
        place="listing 1, comment 5",
        says="backward() from there computes the leaf's gradient",
        truth="it raises: the block cut the path",
        proof=proofs.gradients_reach_the_leaf,
    ),
    Claim(
        id="listing-1-scalar",
        place="listing 1, last call of backward()",
        says="a result of three elements can be differentiated without an argument",
        truth="only a scalar can",
        proof=proofs.three_elements_need_no_argument,
    ),
    Claim(
        id="listing-1-completes",
        place="listing 1",
        says="the program runs and prints a gradient",
        truth="it stops at backward() and prints nothing",
        proof=proofs.first_listing_completes,
        alone=True,
    ),
    Claim(
        id="listing-1-override",
        place="listing 1, comment 2, and after it, sentence 1",
        says="the program shows a block overriding what was set before",
        truth="so it does",
        proof=proofs.override_is_shown,
    ),
    Claim(
        id="listing-1-untracked",
        place="after listing 1, sentence 2",
        says="the block's result is not tracked",
        truth="so it is, inside and ever after",
        proof=proofs.block_result_is_untracked,
    ),
    Claim(
        id="listing-1-contributes",
        place="after listing 1, sentence 3",
        says="what is computed outside the block contributes to the gradient",
        truth="not what is computed from the block's result alone",
        proof=proofs.gradients_reach_the_leaf,
    ),
    # --- listing 2
    Claim(
        id="listing-2-global-off",
        place="listing 2, comment 1",
        says="the first call turns tracking off in the whole program",
        truth="in this thread; a new one has it on",
        proof=proofs.off_in_the_whole_program,
    ),
    Claim(
        id="listing-2-why-it-raises",
        place="listing 2, comment 2",
        says="backward() raises because grad is off",
        truth="it raises because nothing was recorded: switching on does not help, and an earlier "
        "graph runs backward while it is off",
        proof=proofs.raises_because_it_is_off,
    ),
    Claim(
        id="listing-2-dominance",
        place="after listing 2, sentence 1",
        says="what is set globally dominates blocks",
        truth="a block that turns grad on records under it; no_grad proves nothing, it agrees with "
        "what was set",
        proof=proofs.global_dominates,
    ),
    Claim(
        id="listing-2-backward-in-block",
        place="after listing 2, sentence 2",
        says="where grad is off, backward() inside no_grad cannot work",
        truth="backward() ignores the mode; it needs a graph, whenever that was recorded",
        proof=proofs.backward_needs_grad_on,
    ),
    Claim(
        id="listing-2-completes",
        place="listing 2",
        says="the program catches its error and runs to its end",
        truth="so it does, and leaves grad off for whatever runs next",
        proof=proofs.second_listing_completes,
        alone=True,
    ),
    Claim(
        id="listing-2-try",
        place="after listing 2, sentence 3",
        says="catching the RuntimeError is good practice",
        truth="a matter of taste; the error says that a graph is missing, which catching does not "
        "bring back",
    ),
    # --- listing 3
    Claim(
        id="listing-3-flag",
        place="listing 3, comment 1",
        says="enable_grad inside no_grad turns grad on again",
        truth="so it does",
        proof=proofs.flag_is_on_again,
    ),
    Claim(
        id="listing-3-inner-backward",
        place="listing 3, comment 2",
        says="backward() in the inner block gives the outer block's result a gradient",
        truth="it raises: that result requires no gradient",
        proof=proofs.inner_backward_reaches_the_block,
    ),
    Claim(
        id="listing-3-later-backward",
        place="listing 3, comment 3",
        says="backward() after the blocks updates the leaf's gradient alone",
        truth="it would raise: the block cut the path",
        proof=proofs.later_backward_reaches_the_leaf,
    ),
    Claim(
        id="listing-3-completes",
        place="listing 3",
        says="the program catches what it expects and prints a gradient",
        truth="it stops at the inner backward(), which nothing catches, and prints nothing",
        proof=proofs.third_listing_completes,
        alone=True,
    ),
    Claim(
        id="listing-3-reenabling",
        place="after listing 3, sentence 1",
        says="enable_grad makes recording possible again inside no_grad",
        truth="for what starts from tensors that require grad; not for what the block already cut, "
        "and not inside inference mode",
        proof=proofs.reenabling_records,
    ),
    Claim(
        id="listing-3-depth",
        place="after listing 3, sentence 2",
        says="blocks nest as finely as one likes",
        truth="so they do, as long as each is an object of its own, left in order",
        proof=proofs.any_depth,
    ),
    Claim(
        id="listing-3-isolated",
        place="after listing 3, sentence 3",
        says="gradients of the inner block do not reach variables outside it",
        truth="they reach every leaf that the inner block used",
        proof=proofs.stays_in_the_inner_block,
    ),
    Claim(
        id="listing-3-not-retained",
        place="after listing 3, sentence 4",
        says="the outer block keeps nothing of the inner one's gradients",
        truth="a graph lives as long as its result, gradients as long as their leaf; blocks hold "
        "neither",
        proof=proofs.is_not_retained,
    ),
    Claim(
        id="listing-3-only-its-input",
        place="after listing 3, sentence 4",
        says="the inner block changes nothing but its input from the outer block",
        truth="that gets no gradient, for it requires none; leaves get theirs",
        proof=proofs.only_its_input_changes,
    ),
    # --- section 3
    Claim(
        id="advice",
        place="section 3",
        says="documentation, graphs and practice are what to study",
        truth="advice; nothing to run",
    ),
)
