"""What the modes do: executed, derived again by a two-bit machine, and held against the record.

The verdicts are pinned for the version of torch that CI pins; another version is held against the
nearest record, and may differ.
"""

import json
import random
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from builders import measured_block, run
from pages import Page
from typer.testing import CliRunner

import gradbench
from gradbench.cli import app
from gradbench.cli.semantics import load_or_examine
from gradbench.records import semantics
from gradbench.records.semantics import NOT_RUN, RAISED, VERDICTS, Outcome
from gradbench.report import render, write
from gradbench.runner.fork_server import WorkerDied
from gradbench.semantics import CLAIMS, PITFALLS, differences, examination, examine, record, state
from gradbench.semantics.examination import prove
from gradbench.semantics.listings import LISTINGS
from gradbench.semantics.pitfall_proofs import call_outlives_function, generator_leaks
from gradbench.semantics.proof import Absent, ProofResult, bits, claim_verdict, first_sentence
from gradbench.semantics.state import INPUTS, RULES, Rule, State, disagreements, enter, predict

HERE = record.version_of(torch.__version__)
PINNED = Path(__file__).parents[2] / "constraints.txt"
CONSTRUCTS = set(RULES)

recorded_torch = pytest.mark.skipif(
    HERE not in record.recorded(), reason=f"torch {HERE} is not on record"
)


@pytest.fixture(scope="module")
def seen():
    """Everything, once: every proof is run here."""
    return examine()


# --- the truth table


def test_the_table_has_every_combination_once(seen):
    keys = {(row.ambient, row.outer, row.inner, row.input) for row in seen.table}
    assert len(seen.table) == len(keys) == 2 * 7 * 7 * 5 == 490


def test_the_machine_derives_every_row_that_was_executed(seen):
    assert disagreements(seen.table) == []


def mutations():
    for construct, rule in RULES.items():
        for field in fields(Rule):
            for value in {True, False, None} - {getattr(rule, field.name)}:
                name = f"{construct}-{field.name}-{value}"
                changed = replace(rule, **{field.name: value})
                yield pytest.param({**RULES, construct: changed}, id=name)


@pytest.mark.parametrize("rules", list(mutations()))
def test_no_other_rules_agree_with_what_was_executed(seen, rules):
    assert disagreements(seen.table, rules)


@pytest.mark.parametrize(
    ("operation", "instead"),
    [
        ("square", state.times_weight),
        ("times_weight", state.square),
        ("view", state.square),
        ("in_place", state.view),
        ("factory", lambda _: Outcome(requires_grad=True)),
    ],
)
def test_no_other_operations_agree_with_what_was_executed(seen, monkeypatch, operation, instead):
    monkeypatch.setattr(state, operation, instead)
    assert disagreements(seen.table)


@pytest.mark.parametrize("kind", INPUTS)
def test_no_other_kind_of_input_agrees_with_what_was_executed(seen, monkeypatch, kind):
    changed = replace(INPUTS[kind], requires_grad=not INPUTS[kind].requires_grad)
    monkeypatch.setattr(state, "INPUTS", {**INPUTS, kind: changed})
    assert disagreements(seen.table)


def test_one_wrong_fact_in_one_row_is_named(seen):
    row = seen.table[200]
    wrong = [replace(row, outcomes={**row.outcomes, "view": Outcome(version=7)})]
    (words,) = disagreements(wrong)
    assert row.inner in words
    assert "view" in words
    assert disagreements([replace(row, restored=False)]) == [
        f"set_grad_enabled({row.ambient}) > {row.outer} > {row.inner}, {row.input}: "
        "restored is False, not True"
    ]


def test_every_state_is_left_by_every_construct_as_the_rules_say(seen):
    assert len(seen.transitions) == 4 * 6
    for step in seen.transitions:
        after = enter(State(*step.before), step.construct)
        assert (after.grad, after.inference) == step.after


def test_the_frame_has_a_row_a_combination_and_leaves_the_caller_alone():
    with torch.inference_mode():
        frame = gradbench.semantics.truth_table()
        assert bits() == (False, True)
    assert len(frame) == 490
    keys = ["ambient", "outer", "inner", "input"]
    assert not frame.duplicated(keys).any()
    one = frame.set_index(keys).loc[(True, "none", "inference_mode(True)", "leaf")]
    assert one["inference_mode_enabled"]
    assert one["view_requires_grad"]
    assert one["view_grad_fn"] == ""
    assert one["square_inference"]


def test_the_table_is_smaller_by_state_and_input(seen):
    sights = semantics.sights(seen.table)
    assert sum(sight.contexts for sight in sights) == 490
    assert len(sights) == 4 * 5


# --- claims and pitfalls


def test_ci_pins_a_torch_that_is_on_record():
    pinned = re.search(r"^torch==(\S+)", PINNED.read_text("utf-8"), re.MULTILINE)
    assert record.version_of(pinned[1]) in record.recorded()


@recorded_torch
def test_this_torch_behaves_as_on_record(seen):
    assert seen.recorded == HERE
    assert list(seen.differences) == []


def test_there_are_about_forty_claims_each_with_an_id_a_place_and_what_is_so():
    assert len(CLAIMS) >= 40
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert all(claim.place and claim.says and claim.truth for claim in CLAIMS)


def test_every_claim_got_a_verdict_and_says_what_was_seen(seen):
    for claim, one in zip(seen.claims, CLAIMS, strict=True):
        assert claim.verdict in (*VERDICTS, NOT_RUN), f"{claim.id}: {claim.verdict}: {claim.seen}"
        assert bool(claim.seen) is (one.proof is not None)
        assert (claim.verdict == "not testable") is (one.proof is None)


def test_every_pitfall_was_tried_and_what_reproduces_is_cured(seen):
    for pitfall in seen.pitfalls:
        assert pitfall.shown in ("yes", "no", NOT_RUN), f"{pitfall.id}: {pitfall.shown_seen}"
        assert pitfall.shown_seen
        if pitfall.shown == "yes":
            assert pitfall.cured == "yes", f"{pitfall.id}: {pitfall.cured_seen}"
            assert HERE in pitfall.versions


def test_pitfalls_come_silent_ones_first_and_each_has_a_link():
    order = [pitfall.silent for pitfall in PITFALLS]
    assert order == sorted(order, reverse=True)
    assert len({pitfall.id for pitfall in PITFALLS}) == len(PITFALLS) >= 20
    for pitfall in PITFALLS:
        assert re.match(
            r"https://(docs\.pytorch\.org/|github\.com/pytorch/pytorch/(issues|pull)/\d+$)",
            pitfall.link,
        )


@pytest.mark.parametrize("claim", [claim.id for claim in CLAIMS])
def test_another_verdict_on_record_is_a_difference(seen, claim):
    mine = record.record_of(seen)
    was = mine["claims"][claim]
    other = next(verdict for verdict in VERDICTS if verdict != was)
    changed = {**mine, "claims": {**mine["claims"], claim: other}}
    assert list(differences(seen, HERE, mine)) == []
    if was != NOT_RUN:
        (words,) = differences(seen, HERE, changed)
        assert words.startswith(f"claim {claim}: {other} -> {was}")


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("pitfall", [pitfall.id for pitfall in PITFALLS])
def test_another_answer_on_record_is_a_difference(seen, pitfall, part):
    mine = record.record_of(seen)
    answers = list(mine["pitfalls"][pitfall])
    if answers[part] == NOT_RUN:
        pytest.skip("not run here")
    answers[part] = "no" if answers[part] == "yes" else "yes"
    changed = {**mine, "pitfalls": {**mine["pitfalls"], pitfall: answers}}
    (words,) = differences(seen, HERE, changed)
    assert words.startswith(f"pitfall {pitfall}: {('shown', 'cured')[part]}")


def test_what_was_not_run_here_or_when_recorded_is_no_difference(seen):
    mine = record.record_of(seen)
    first, *others = seen.claims
    absent = replace(seen, claims=(replace(first, verdict=NOT_RUN), *others))
    assert list(differences(absent, HERE, mine)) == []
    untold = {**mine, "claims": {**mine["claims"], first.id: NOT_RUN}}
    assert list(differences(seen, HERE, untold)) == []


def test_a_claim_that_is_not_on_record_is_a_difference(seen):
    mine = record.record_of(seen)
    less = {name: verdict for name, verdict in mine["claims"].items() if name != "hierarchy"}
    (words,) = differences(seen, HERE, {**mine, "claims": less})
    assert words.startswith("claim hierarchy: not on record -> fails")


def test_versions_without_a_record_are_held_against_the_nearest(monkeypatch):
    monkeypatch.setattr(record, "recorded", lambda: {"2.9": {}, "2.11": {}, "2.13": {}})
    versions = ["2.13.1+cu130", "2.14.0.dev20270101", "2.12.0", "2.10.0", "2.8.0", "3.0.0"]
    assert [record.against(one) for one in versions] == [
        *("2.13", "2.13", "2.11", "2.9", "2.9", "2.13")
    ]


# --- how proofs are run


@pytest.mark.parametrize("leaky", [call_outlives_function, generator_leaks])
def test_a_proof_that_leaks_a_mode_leaks_it_into_nothing(leaky):
    assert prove(leaky).answer == "yes"
    assert bits() == (True, False)


def test_proofs_see_the_state_of_a_new_thread_and_not_their_callers():
    with torch.inference_mode():
        assert prove(lambda: ProofResult(str(bits()), "")).answer == "(True, False)"


def test_proofs_leave_the_random_state_alone():
    before = torch.get_rng_state()
    prove(lambda: ProofResult("yes", str(torch.rand(3))))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_proof_that_lacks_something_is_not_run_with_the_reason():
    def proof():
        raise Absent("no such device")

    assert prove(proof) == ProofResult(NOT_RUN, "no such device")


def test_a_proof_that_raises_is_an_answer_of_its_own():
    def proof():
        raise AttributeError("torch has no attribute 'no_grad'")

    assert prove(proof) == ProofResult(RAISED, "AttributeError: torch has no attribute 'no_grad'")


def test_a_proof_that_takes_its_process_down_costs_itself_alone(monkeypatch):
    tasks = [("claim", name) for name in ("first", "deadly", "last")]
    monkeypatch.setattr(examination, "_tasks", lambda alone: list(tasks))

    class Mortal:
        def run(self, _job, left, *, limit_s):
            for task in left:
                if task[1] == "deadly":
                    raise WorkerDied("crashed", "killed by SIGSEGV")
                yield ProofResult("holds", task[1])

    answers = examination._prove_alone(Mortal())
    assert list(answers) == tasks
    assert answers["claim", "deadly"] == ProofResult(RAISED, "killed by SIGSEGV")
    assert answers["claim", "last"] == ProofResult("holds", "last")


@pytest.mark.parametrize(
    ("core", "always", "verdict"),
    [
        (True, True, "holds"),
        (True, False, "holds with a qualification"),
        (False, True, "fails"),
        (False, False, "fails"),
    ],
)
def test_a_verdict_follows_from_what_was_seen(core, always, verdict):
    assert claim_verdict(core, "", always=always).answer == verdict


@pytest.mark.parametrize(
    ("message", "first"),
    [
        ("is not allowed.You can make a clone", "is not allowed"),
        (
            "a torch.FloatTensor [3] was modified. Hint: look",
            "a torch.FloatTensor [3] was modified",
        ),
        ("one line\nanother", "one line"),
        ("ends here.", "ends here"),
    ],
)
def test_the_first_sentence_of_an_error_is_reported(message, first):
    assert first_sentence(RuntimeError(message)) == first


# --- listings


def test_repaired_listings_run_to_their_end_and_print_gradients(seen):
    repaired = {one.id: one for one in seen.listings if one.repaired}
    assert set(repaired) == set(LISTINGS)
    for one in repaired.values():
        assert not one.error, f"{one.id}: {one.error}"
    printed = {name: one.printed.splitlines() for name, one in repaired.items()}
    assert printed["local-disable"] == ["tensor([6., 6., 6.])"]
    assert printed["global-disable"] == ["False True", "tensor([2., 2., 2.])"]
    assert printed["nested-reenable"] == ["tensor([2., 2., 2.]) None"]
    assert printed["conditional"][:2] == ["False True", "True True"]


def test_listings_as_first_written_stop_where_they_must(seen):
    first = {one.id: one for one in seen.listings if not one.repaired}
    assert first["local-disable"].stopped_at.startswith("result.backward()")
    assert first["local-disable"].printed == ""
    assert first["global-disable"].error == ""
    assert first["global-disable"].printed.startswith("caught: element 0 of tensors")
    assert first["nested-reenable"].stopped_at == "doubled.backward()"


# --- the file, the page and the command


def test_what_is_saved_is_read_back_the_same(seen, tmp_path):
    path = tmp_path / "deep" / semantics.FILE
    semantics.save(seen, path)
    assert semantics.load(path) == seen


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"outcomes": [], "operations": []}']
)
def test_a_file_that_cannot_be_read_is_as_good_as_none(text, tmp_path):
    path = tmp_path / semantics.FILE
    assert semantics.load(path) is None
    path.write_text(text, "utf-8")
    assert semantics.load(path) is None


def test_neither_loading_nor_showing_needs_torch(seen, tmp_path):
    semantics.save(seen, tmp_path / semantics.FILE)
    code = (
        "import sys; from pathlib import Path; from gradbench import report; "
        "from gradbench.records import semantics; "
        f"semantics.load(Path({str(tmp_path / semantics.FILE)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture(scope="module")
def page(seen):
    return render(run(measured_block()), semantics=seen)


def test_the_page_is_well_formed_and_has_no_id_twice(page):
    parsed = Page(page)
    assert parsed.open == []
    ids = parsed.every("id")
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in parsed.every("href") if href.startswith("#")} <= set(ids)


def test_the_full_table_is_there_without_scripts_and_light(page):
    section = page[page.index('<section id="semantics"') :]
    assert "<script" not in section[: section.index("</section>")]
    start = page.index('aria-label="Every combination"')
    table = page[start : page.index("</table>", start)]
    assert table.count('<tr class="x ') == 490
    assert len(table.encode()) < 150_000


def test_the_filter_has_a_choice_for_every_value_that_hides_the_other_rows(page):
    choices = set(re.findall(r'id="s-([\w-]+)"', page))
    assert len(choices) == 2 + 7 + 7 + 5
    assert set(re.findall(r"#s-([\w-]+):checked\)", page)) == choices
    shown = set(re.findall(r'class="(?:x )?([\w -]+)"', page[page.index('class="all"') :]))
    assert choices <= {mark for marks in shown for mark in marks.split()}


def test_claims_on_memory_and_speed_are_linked_to_this_runs_cells(page):
    text = page[
        page.index("claims about memory and speed") : page.index(f"All {len(CLAIMS)} claims")
    ]
    assert 'href="#r0-figure-forest">inference[cpu-mlp_tiny-b8]</a>: 4 times' in text
    assert 'href="#r0-figure-forest">inference[cpu-mlp_tiny-b8]</a>: 1.33 times [' in text


def test_a_page_without_any_of_it_says_how_to_get_it():
    assert "gradbench semantics" in Page(render(run(measured_block()))).text


def test_what_differs_from_the_record_is_on_the_page_and_escaped(seen):
    changed = replace(seen, differences=("claim x: holds -> <script>alert(1)</script>",))
    html = render(run(measured_block()), semantics=changed)
    assert "1 differ" in html
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html


@pytest.fixture
def command(seen, tmp_path, monkeypatch):
    """Call `gradbench semantics` where the examination is done already."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, found=seen):
        monkeypatch.setattr("gradbench.semantics.examine", lambda say: found)
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["semantics", *arguments])

    return call


def test_the_command_exits_with_0_and_leaves_a_file_where_all_is_as_recorded(
    command, seen, tmp_path
):
    result = command(found=replace(seen, differences=()))
    assert result.exit_code == 0, result.output
    assert "490 combinations" in result.stdout
    assert f"{len(CLAIMS)} of the article" in result.stdout
    assert semantics.load(tmp_path / "results" / semantics.FILE).claims == seen.claims


def test_the_command_exits_with_1_and_the_difference_where_a_verdict_changed(command, seen):
    changed = replace(seen, differences=("claim hierarchy: fails -> holds (it changed)",))
    result = command(found=changed)
    assert result.exit_code == 1
    assert "changed: claim hierarchy: fails -> holds (it changed)" in result.stderr


def test_the_command_prints_everything_as_json(command, seen):
    result = command("--json")
    assert semantics.from_json(result.stdout) == seen
    assert len(json.loads(result.stdout)["table"]) == 490


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--claims", [claim.says for claim in CLAIMS] + [claim.id for claim in CLAIMS]),
        ("--pitfalls", [p.title for p in PITFALLS] + [p.link for p in PITFALLS]),
        ("--table", [*(CONSTRUCTS - {"none"}), "grad on, inference", "490 of 490 combinations"]),
    ],
)
def test_the_command_shows_what_it_is_asked_for(command, option, words):
    output = command(option).stdout
    assert [word for word in words if word not in output] == []


def test_a_run_asks_once_for_each_version_of_torch(seen, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("gradbench.semantics.examine", lambda say: asked.append(1) or seen)
    assert load_or_examine(tmp_path, torch=seen.torch) == seen
    assert load_or_examine(tmp_path, torch=seen.torch) == seen
    assert len(asked) == 1
    assert load_or_examine(tmp_path, torch="9.9.9") == seen
    assert len(asked) == 2


def test_the_report_shows_what_lies_beside_the_runs(seen, tmp_path):
    page = write(run(measured_block()), tmp_path / "page.html", semantics=seen)
    assert "Pitfalls that nothing warns of" in page.read_text("utf-8")


def test_predictions_do_not_depend_on_the_order_they_are_made_in(seen):
    rows = list(seen.table)
    random.Random(0).shuffle(rows)
    for row in rows:
        assert predict(row.ambient, row.outer, row.inner, row.input) == row
