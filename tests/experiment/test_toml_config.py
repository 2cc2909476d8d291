"""What a user may ask for, and what is said when it cannot be."""

import math

import pytest

from gradbench.errors import BadConfig, Impossible, UnknownName
from gradbench.experiment.matrix import GRAD_MODES, OF_ONE_PROCESS, WORKLOADS, Matrix
from gradbench.experiment.model_source import ModelSource
from gradbench.experiment.plan import Plan
from gradbench.experiment.presets import ONE_PASS, PRESETS
from gradbench.experiment.toml_config import choose, locate, read

GOOD = """\
about = "our models"

[plan]
budget_s = 2
seed = 7

[[matrix]]
models = ["mlp_tiny", "shop.nets:tower"]
batch_sizes = [1, 64]

[[matrix]]
models = ["cnn_small"]
workloads = ["training"]
memory_formats = [
    "contiguous",
    "channels_last",
]
"""


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "bench.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_cells_in_every_mode_and_says_what_it_is(name):
    choice = choose(preset=name)
    assert choice.file is None
    assert choice.plan == PRESETS[name].plan
    assert {c.grad_mode for c in choice.cells} == set(GRAD_MODES)
    has = {"tiny": ONE_PASS, "quick": OF_ONE_PROCESS, "full": WORKLOADS}[name]
    assert {c.workload for c in choice.cells} == set(has)
    assert len(choice.cells) == len(set(choice.cells))
    assert PRESETS[name].about


def test_an_unknown_preset_is_named_with_the_nearest():
    with pytest.raises(UnknownName, match="unknown preset 'quik': did you mean 'quick'"):
        choose(preset="quik")


def test_selections_narrow_and_widen_and_numbers_are_read_as_numbers():
    choice = choose(
        preset="tiny",
        selections={"model": ["mlp_tiny"], "workload": ["inference"], "batch_size": ["8", "16"]},
    )
    assert choice.cells == tuple(Matrix(models=["mlp_tiny"], batch_sizes=[8, 16]))


def test_an_axis_without_values_is_left_as_it_is():
    assert choose(preset="tiny", selections={"device": []}).cells == choose(preset="tiny").cells


def test_plan_options_replace_only_what_they_name():
    choice = choose(preset="tiny", plan={"budget_s": 0.5, "seed": 3})
    expected = PRESETS["tiny"].plan
    assert (choice.plan.budget_s, choice.plan.seed) == (0.5, 3)
    assert choice.plan.warmup_s == expected.warmup_s


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"selections": {"grad_mode": ["nograd"]}}, UnknownName, "did you mean 'no_grad'"),
        ({"selections": {"batch_size": ["many"]}}, Impossible, "batch-size .* not 'many'"),
        ({"selections": {"batch_size": ["0"]}}, Impossible, "from 1 up, not '0'"),
        ({"selections": {"threads": ["-1"]}}, Impossible, "threads .* not '-1'"),
        ({"plan": {"budget_s": 0}}, Impossible, "budget_s must be above 0, not 0"),
        ({"plan": {"max_rounds": 1.5}}, Impossible, "max_rounds must be a whole number, not 1.5"),
        ({"plan": {"limit_s": "5"}}, Impossible, "limit_s must be a number, not '5'"),
        ({"plan": {"seed": True}}, Impossible, "seed must be a number, not True"),
    ],
)
def test_options_that_cannot_be_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        choose(preset="tiny", **options)


@pytest.mark.parametrize("field", ["budget_s", "precision_short", "limit_s"])
def test_not_a_number_is_no_plan(field):
    with pytest.raises(Impossible):
        Plan(**{field: math.nan})


def test_a_plan_whose_least_rounds_exceed_its_most_is_refused():
    with pytest.raises(Impossible, match="min_rounds"):
        Plan(min_rounds=100, max_rounds=50)


def test_a_file_is_read_into_its_matrices_and_plan(toml):
    experiment = read(toml(GOOD))
    assert experiment.about == "our models"
    assert experiment.plan == Plan(budget_s=2, seed=7)
    first, second = experiment.matrices
    assert list(first) == list(Matrix(models=["mlp_tiny", "shop.nets:tower"], batch_sizes=[1, 64]))
    assert list(second) == list(
        Matrix(
            models=["cnn_small"],
            workloads=["training"],
            memory_formats=["contiguous", "channels_last"],
        )
    )
    assert list(experiment) == [*first, *second]


def test_a_file_takes_the_place_of_a_preset_and_takes_the_same_options(toml):
    path = toml(GOOD)
    choice = choose(file=path, selections={"model": ["cnn_small"]}, plan={"seed": 8})
    assert choice.file == path
    assert {c.model for c in choice.cells} == {"cnn_small"}
    assert choice.plan == Plan(budget_s=2, seed=8)


def test_a_file_with_models_alone_gets_the_defaults(toml):
    experiment = read(toml('[[matrix]]\nmodels = ["a"]\n'))
    assert list(experiment) == list(Matrix(models=["a"]))
    assert experiment.plan == Plan()
    assert experiment.about == "bench"


def broken(old, new, *, text=GOOD):
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        pytest.param(broken("seed = 7", "seed = = 7"), 5, "", id="syntax"),
        pytest.param(broken("seed = 7", "seed = 7\nseed = 8"), 6, "", id="key-twice"),
        pytest.param(
            broken("batch_sizes", "batch_size"),
            9,
            "batch_size: no such key: did you mean 'batch_sizes'?",
            id="unknown-key",
        ),
        pytest.param(
            broken("workloads", "zzz"),
            13,
            "zzz: no such key: autocasts, batch_sizes, checkpointing, compile",
            id="far-key",
        ),
        pytest.param(
            broken("about", "abuot"), 1, "abuot: no such key: did you mean 'about'?", id="top-key"
        ),
        pytest.param(broken("[plan]", "[plans]"), 3, "did you mean 'plan'?", id="unknown-table"),
        pytest.param(
            broken('"mlp_tiny", "shop.nets:tower"', ""), 8, "models: models is empty", id="empty"
        ),
        pytest.param(broken("[1, 64]", "[1, 0]"), 9, "batch_sizes: ", id="first-table"),
        pytest.param(
            broken('["training"]', '["trainin"]'),
            13,
            "workloads: unknown workload 'trainin': did you mean 'training'?",
            id="second-table",
        ),
        pytest.param(
            broken('["cnn_small"]', '"cnn_small"'),
            12,
            "models: models takes a list of values, not 'cnn_small'",
            id="second-table-key-that-the-first-has-too",
        ),
        pytest.param(
            broken('    "channels_last",\n]', '    "channels_past",\n]'),
            14,
            "memory_formats: unknown memory format 'channels_past'",
            id="array-over-lines",
        ),
        pytest.param(
            broken("budget_s = 2", "budget_s = -2"),
            4,
            "budget_s: budget_s must be above 0",
            id="plan",
        ),
        pytest.param(
            broken("budget_s", "budgets"),
            4,
            "budgets: no such key: did you mean 'budget_s'?",
            id="plan-key",
        ),
        pytest.param(
            'plan = 3\n[[matrix]]\nmodels = ["a"]\n', 1, "plan: a [plan] table", id="plan-no-table"
        ),
    ],
)
def test_a_bad_file_is_named_with_line_and_key(toml, text, line, said):
    path = toml(text)
    with pytest.raises(BadConfig) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert f"line {line}," in message
    assert said in message
    assert "\n" not in message


SAME_KEY = """\
{top}
[[matrix]]
models = ["a"]
threads = [1]

[plan]
{plan}
"""


@pytest.mark.parametrize(
    ("top", "plan", "line"),
    [
        pytest.param('models = ["a"]', "seed = 1", 1, id="at-the-top"),
        pytest.param("about = 'x'", "threads = 2", 7, id="in-the-plan"),
    ],
)
def test_a_misplaced_key_is_named_where_it_stands_though_another_table_has_it(
    toml, top, plan, line
):
    with pytest.raises(BadConfig, match=f"line {line}, "):
        read(toml(SAME_KEY.format(top=top, plan=plan)))


def test_a_table_header_with_spaces_counts_as_a_table(toml):
    spaced = broken("seed = 7\n\n[[matrix]]", "seed = 7\n\n[[ matrix ]]")
    spaced = spaced.replace("\n[[matrix]]", "\n[[ matrix ]]").replace("[1, 64]", "[0]")
    spaced += '\n[[ matrix ]]\nmodels = ["a"]\nbatch_sizes = [1]\n'
    with pytest.raises(BadConfig, match="line 9, "):
        read(toml(spaced))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no [[matrix]] table"),
        ('[matrix]\nmodels = ["a"]\n', "no [[matrix]] table"),
        ("matrix = [1]\n", "no [[matrix]] table"),
        ('[[matrix]]\nmodels = ["a"]\n[[matrix]]\nthreads = [2]\n', "number 2 names no models"),
        (b'about = "\xff"\n', "not UTF-8"),
    ],
)
def test_a_file_that_is_no_experiment_is_named_with_what_it_lacks(toml, text, said):
    path = toml(text)
    with pytest.raises(BadConfig) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadConfig, match=r"nowhere\.toml: there is no such file"):
        choose(file=tmp_path / "nowhere.toml")


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(BadConfig, match="it is no regular file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("mlp_tiny", "line 8, models: "),
        ("shop.nets:tower", "line 8, models: "),
        ("channels_last", "line 16, memory_formats: "),  # an array over lines
        ("nobody", ""),
        ("mlp_tin", ""),
    ],
)
def test_a_name_that_a_catalogue_refused_is_found_in_the_file(toml, name, where):
    path = toml(GOOD)
    found = locate(path, UnknownName("model", name, ["x"]))
    assert found == (f"{path}, {where}" if where else "")


def test_single_quotes_hide_no_name(toml):
    path = toml(GOOD.replace('"', "'"))
    assert "line 12, models" in locate(path, UnknownName("model", "cnn_small", ["x"]))


def test_a_name_is_not_found_in_a_comment(toml):
    path = toml('# models = ["mlp_dep"]\n[[matrix]]\nmodels = ["mlp_dep"]\n')
    assert "line 3, models" in locate(path, UnknownName("model", "mlp_dep", ["mlp_deep"]))


TOWER = """
[models.tower]
build = "shop/nets.py:Tower"
input = ["image=B,3,8,8", "ids=B,7:int64<9"]
loss = "shop/nets.py:loss"
head = "projection"

[models.other]
build = "transformers:bert"
pretrained = true

[[matrix]]
models = ["tower"]
"""


def test_a_file_describes_models_and_only_those_of_its_cells_are_had(toml):
    choice = choose(file=toml(TOWER))
    assert choice.sources == {
        "tower": ModelSource(
            build="shop/nets.py:Tower",
            input=("image=B,3,8,8", "ids=B,7:int64<9"),
            loss="shop/nets.py:loss",
            head="projection",
        )
    }
    widened = choose(file=toml(TOWER), selections={"model": ["other"]})
    assert widened.sources == {"other": ModelSource(build="transformers:bert", pretrained=True)}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('build = "shop/nets.py:Tower"\n', "", r"\[models\.tower\] has no build"),
        ('head = "projection"', "heads = 1", "line 6, heads: no such key: did you mean 'head'"),
        ('head = "projection"', "head = 3", "line 6, head: 3 is not of the type str"),
        ("pretrained = true", 'pretrained = "yes"', "line 10, pretrained: 'yes' is not .* bool"),
        ("image=B,3", "image=4,3", "line 4, input: .*write B for the batch"),
        ("int64<9", "int65<9", "line 4, input: .*'int65'"),
        ('["image=B,3,8,8", "ids=B,7:int64<9"]', "3", "line 4, input: an input is a string"),
        ('loss = "shop/nets.py:loss"', 'batch = "a:b"', "line 3, build: .*both input and batch"),
    ],
)
def test_a_model_s_table_that_says_nothing_sensible_is_refused_with_its_line(toml, old, new, said):
    with pytest.raises(BadConfig, match=said):
        read(toml(TOWER.replace(old, new)))


HUGE = "0x" + "f" * 5000  # more digits than Python writes


@pytest.mark.parametrize(
    "text",
    [
        f"about = {HUGE}\n[[matrix]]\nmodels = ['mlp_tiny']",
        f"plan = [{HUGE}]\n[[matrix]]\nmodels = ['mlp_tiny']",
        f"[plan]\nbudget_s = [{HUGE}]\n[[matrix]]\nmodels = ['mlp_tiny']",
        f"[plan]\nseed = {HUGE}\n[[matrix]]\nmodels = ['mlp_tiny']",
        f"[[matrix]]\nmodels = [{HUGE}]",
        f"[[matrix]]\nmodels = {{a = {HUGE}}}",
        f"[[matrix]]\nmodels = ['m']\n[models.m]\nbuild = {HUGE}",
        f"[[matrix]]\nmodels = ['m']\n[models.m]\nbuild = 'a:b'\ninput = [{HUGE}]",
    ],
    ids=lambda text: text[:40],
)
def test_a_number_that_python_cannot_write_is_refused_in_one_line(toml, text):
    with pytest.raises(BadConfig) as refused:
        read(toml(text))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_more_cells_than_anybody_measures_are_refused_before_they_are_made(toml):
    many = ", ".join(map(str, range(1, 1001)))
    text = f"[[matrix]]\nmodels = ['mlp_tiny']\nbatch_sizes = [{many}]\nthreads = [{many}]"
    with pytest.raises(BadConfig, match="number 1: that is 4,000,000 cells: give fewer"):
        read(toml(text))
    sizes = list(map(str, range(1000, 10**6)))
    with pytest.raises(Impossible, match="cells: give fewer values, for 100,000 at most"):
        choose(preset="tiny", selections={"batch_size": sizes})
