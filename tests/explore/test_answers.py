"""The page's answers: each is the library's own number, and the Python that a click shows makes the same patch."""

import contextlib
import io
import json

import numpy as np
import pytest
from conftest import tiny_model

import nanopatch
from nanopatch import Experiment, NanopatchError, Patch, experiments
from nanopatch.explore import pair as pair_module
from nanopatch.explore.answers import ARRAYS, Answers, counts, first_experiment, n_edges
from nanopatch.explore.pair import DRAWN, Pair, What
from nanopatch.model.sites import SITES, record
from nanopatch.page.pack import unpack
from nanopatch.results.sweep import DIRECTIONS

MODEL = nanopatch.load("nano")
MICHELLE = experiments.MICHELLE
ELON = experiments.ELON  # 16 and 15 tokens
IDS = Experiment([3, 5, 7, 9], [3, 6, 7, 9], 4, 8)
#: float16 keeps three digits. Of sums of runs, in float32, five are the same whatever the order of the sums.
HALF, SAME = 1e-3, 1e-5


def ask(question, experiment=MICHELLE, model=MODEL):
    return unpack(Answers(model).reply(experiment, question))


def what(site="resid_pre", axes=("layer", "position"), window=1, direction="denoise", cell=12):
    return {"site": site, "axes": list(axes), "window": window, "direction": direction, "cell": cell}


#: Cells of many kinds: one array or several layers, aligned prompts, heads, neurons, queries and keys.
CELLS = [
    (MICHELLE, what()),
    (MICHELLE, what(direction="noise", cell=43)),
    (MICHELLE, what("attn_out", window=2, cell=32)),
    (MICHELLE, what("z", ("layer", "head"), cell=6)),
    (MICHELLE, what("v", ("head", "position"), cell=12)),
    (MICHELLE, what("k", ("layer", "head", "position"), cell=45)),
    (MICHELLE, what("mlp_post", ("layer", "neuron"), cell=700)),
    (MICHELLE, what("mlp_pre", ("position",), cell=1)),
    (MICHELLE, what("pattern", ("layer", "head"), cell=5)),
    (MICHELLE, what("scores", ("layer", "query"), cell=21)),
    (MICHELLE, what("pattern", ("head", "key"), cell=3)),
    (MICHELLE, what("q_input", cell=21)),
    (ELON, what(cell=17)),
    (ELON, what("z", ("layer", "head"), cell=4)),
    (ELON, what("mlp_out", direction="noise", cell=2)),
    (Experiment(MICHELLE.clean, MICHELLE.corrupted, " Jones", " Smith", prepend_bos=True), what("resid_mid", cell=14)),
]


@pytest.mark.parametrize(("experiment", "asked"), CELLS)
def test_a_click_is_the_patch(experiment, asked):
    """The tokens after it are those that the Python beside it prints, and the metric is that of the sweep."""
    reply = ask({"view": "patch", **asked}, experiment)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(reply["code"], "code", "exec"), {})
    difference, *lines = printed.getvalue().splitlines()
    patch = Patch(asked["site"], asked["axes"], window=asked["window"])
    grid = nanopatch.sweep(MODEL, experiment, patch, direction=asked["direction"]).grid
    scale = max(abs(row["logit"]) for row in reply["top"]["before"])
    answer, wrong = (row["after"]["logit"] for row in reply["answers"])
    assert float(difference) == pytest.approx(grid.flat[asked["cell"]], abs=SAME * scale)
    assert answer - wrong == pytest.approx(grid.flat[asked["cell"]], abs=SAME * scale)
    assert [line.rpartition(" ")[0] for line in lines] == [repr(row["text"]) for row in reply["top"]["after"]]
    logits = [float(line.rpartition(" ")[2]) for line in lines]
    np.testing.assert_allclose(logits, [row["logit"] for row in reply["top"]["after"]], rtol=0, atol=SAME * scale)


@pytest.mark.parametrize(("experiment", "asked"), CELLS)
def test_the_patched_run_is_that_of_a_loop_and_equal_to_the_base_where_it_cannot_differ(experiment, asked):
    pair = Pair(MODEL, experiment)
    cell = What(**asked | {"axes": tuple(asked["axes"])})
    (case, _), edits, run = pair.cells(cell), pair.edits(cell), pair.run(cell)

    def by_hand():
        for site in MODEL.steps(case.base.tokens):
            for edit in edits:
                if (edit.site, edit.layer) == (site.name, site.layer):
                    edit.assign(site.array, 0)
            yield site

    expected = record(by_hand())
    assert edits
    for name in (*DRAWN, "ln_final"):
        np.testing.assert_allclose(run[name], expected[name], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(run.logits[-1], expected.logits[-1], rtol=1e-3, atol=1e-3)

    first = min(edit.layer for edit in edits)
    position = min(edit.positions[0] for edit in edits)
    for name in DRAWN:
        rows = np.moveaxis(run[name], 2, 1) if name in ("scores", "pattern") else run[name]
        base = np.moveaxis(case.base[name], 2, 1) if name in ("scores", "pattern") else case.base[name]
        np.testing.assert_array_equal(rows[:first], base[:first])
        np.testing.assert_array_equal(rows[:, :position], base[:, :position])


def test_a_patch_is_told_with_how_far_it_spreads():
    """A residual stream that is overwritten with another prompt's: from there on, and to later positions only."""
    reply = ask({"view": "patch", **what(cell=12)})  # layer 1, position 1
    change = dict(zip(reply["names"], reply["change"].astype(float), strict=True))  # {name: (n_layer, n_tokens)}
    assert reply["label"] == "resid_pre, layer 1, position 1 ␣Jones / ␣Smith: clean patched into corrupted"
    assert [(edit["site"], edit["layer"], edit["positions"]) for edit in reply["edits"]] == [("resid_pre", 1, [1])]
    assert not any(of[0].any() for of in change.values())  # layer 0
    assert not any(of[:, 0].any() for of in change.values())  # position 0
    clean, corrupted = (MODEL.run(prompt).resid_pre[1, 1] for prompt in (MICHELLE.clean, MICHELLE.corrupted))
    expected = np.linalg.norm(clean - corrupted) / np.linalg.norm(corrupted)
    assert change["resid_pre"][1, 1] == pytest.approx(expected, rel=HALF)
    assert (change["resid_post"][1:, 1:] > 0).all() and reply["change_final"][1, -1] > 0


def test_prompts_tell_both_runs():
    reply = ask({"view": "prompts"})
    runs = {name: MODEL.run(getattr(MICHELLE, name)) for name in ("clean", "corrupted")}
    assert reply["clean"]["tokens"] == MODEL.token_strings(MODEL.tokenize(MICHELLE.clean))
    assert reply["columns"] == [list(pair) for pair in MICHELLE.columns(MODEL)] and "error" not in reply
    for name, run in runs.items():
        for row, expected in zip(reply["top"][name], run.top(10), strict=True):
            assert (row["id"], row["text"]) == (expected["id"], expected["token"])
            assert row["probability"] == pytest.approx(expected["probability"], rel=1e-4)
        for row in reply["answers"]:
            logits = run.logits[-1]
            assert row[name]["logit"] == pytest.approx(float(logits[row["id"]]), abs=1e-4)
            assert row[name]["rank"] == int((logits > logits[row["id"]]).sum())
    assert [row["text"] for row in reply["answers"]] == [" Jones", " Smith"]


@pytest.mark.parametrize("metric", ["logit_diff", "probability", "kl_divergence", "cross_entropy"])
def test_a_grid_is_the_sweep(metric):
    question = {"view": "sweep", "site": "z", "axes": ["head", "position"], "window": 1, "direction": "noise"}
    reply = ask(question | {"metric": metric})
    result = nanopatch.sweep(MODEL, MICHELLE, Patch("z", ("head", "position")), direction="noise", metric=metric)
    np.testing.assert_array_equal(reply["values"], result.grid)
    np.testing.assert_array_equal(reply["normalised"], result.normalised)
    np.testing.assert_array_equal(reply["unchanged"].astype(bool), result.unchanged)
    np.testing.assert_array_equal(reply["cell"].ravel(), np.arange(result.grid.size))
    assert (reply["base_value"], reply["donor_value"]) == (result.base_value, result.donor_value)
    assert reply["columns"] == result.labels("position") and reply["notes"] == result.notes


def test_a_grid_of_three_axes_tells_which_cell_is_which():
    axes = ("layer", "head", "position")
    reply = ask({"view": "sweep", "site": "v", "axes": [*axes], "window": 1, "direction": "denoise", "metric": "rank"})
    grid = nanopatch.sweep(MODEL, MICHELLE, Patch("v", axes), metric="rank").grid
    assert reply["values"].shape == (16, 11)
    np.testing.assert_array_equal(grid.ravel()[reply["cell"]], reply["values"])


@pytest.mark.parametrize("run", ["clean", "corrupted", "patched"])
def test_views_of_a_run_show_the_librarys_numbers(run):
    of = {"run": run, **(what("mlp_out", cell=32) if run == "patched" else {})}
    pair = Pair(MODEL, MICHELLE)
    cell = What("mlp_out", ("layer", "position"), 1, "denoise", 32) if run == "patched" else run
    recorded = pair.run(cell)

    shown, expected = ask({"view": "attention", **of}), nanopatch.attention(MODEL, recorded)
    np.testing.assert_allclose(shown["values"].astype(float), expected.values, rtol=HALF, atol=1e-7)
    assert shown["exact"] and shown["heads"] == [list(head) for head in expected.heads]

    shown = ask({"view": "head", "layer": 2, "head": 1, **of})
    np.testing.assert_allclose(shown["values"].astype(float), expected.values[9], rtol=HALF, atol=1e-7)

    shown, lens = ask({"view": "lens", **of}), nanopatch.logit_lens(MODEL, recorded, " Jones", " Smith")
    texts = [[shown["texts"][number] for number in row] for row in shown["text"]]
    assert texts == [list(row) for row in lens.predicted]
    for name in ("probability", "answer_probability", "rank", "logit_diff"):
        digits = HALF if name == "logit_diff" else 1e-4
        np.testing.assert_allclose(shown[name].astype(float), getattr(lens, name), rtol=digits, atol=1e-4)

    shown = ask({"view": "direct", **of})
    direct = nanopatch.direct_logit_attribution(MODEL, recorded, " Jones", " Smith")
    assert shown["names"] == list(direct.names)
    np.testing.assert_allclose(shown["values"], direct.values, rtol=0, atol=1e-4)
    np.testing.assert_allclose(shown["heads"], direct.heads, rtol=0, atol=1e-4)
    assert shown["total"] == pytest.approx(float(recorded.logits[-1][5437] - recorded.logits[-1][4176]), abs=1e-3)
    assert any(name.startswith("edit of mlp_out") for name in direct.names) == (run == "patched")

    shown = ask({"view": "arrays", "layer": 2, **of})
    for name in DRAWN:
        array = recorded[name][2]
        assert shown["shapes"][name] == list(array.shape)
        if shown["pooled"][name] == 1:
            np.testing.assert_allclose(shown[name].astype(float), array, rtol=HALF, atol=1e-6)
        else:  # the entry of largest size among neighbours
            groups = array.reshape(*array.shape[:-1], -1, shown["pooled"][name])
            np.testing.assert_allclose(np.abs(shown[name]).astype(float), np.abs(groups).max(-1), rtol=HALF)


def test_a_circuit_is_that_of_the_best_edges():
    reply = ask({"view": "circuit", "metric": "logit_diff", "n": 40})
    scores = nanopatch.edge_attribution(MODEL, MICHELLE, steps=5)
    best = nanopatch.circuit(scores, 40)
    kept = nanopatch.faithfulness(MODEL, MICHELLE, best)
    assert reply["edges"] == [[str(edge.sender), str(edge.receiver), edge.score] for edge in best]
    assert (reply["value"], reply["normalised"]) == (kept.value, kept.normalised)
    assert reply["n_all"] == len(scores.edges) == n_edges(MODEL) == reply["counts"][-1]


@pytest.mark.parametrize(("n_layer", "n_head"), [(1, 1), (3, 2), (2, 3)])
def test_the_number_of_edges_is_known_before_they_are_scored(n_layer, n_head):
    model = tiny_model(n_layer=n_layer, n_head=n_head)
    assert n_edges(model) == len(nanopatch.edge_attribution(model, IDS).edges)
    assert counts(n_edges(model))[-1] == n_edges(model)


# ---- mistakes, and what mends them -----------------------------------------------------------------

MISTAKES = [
    Experiment(MICHELLE.clean, MICHELLE.corrupted, "Ramirez", " Smith"),
    Experiment(MICHELLE.clean, MICHELLE.corrupted, " Jones", "Ramirez"),
    Experiment(ELON.clean, ELON.corrupted, " Musk", " Jobs"),
    Experiment(MICHELLE.clean, MICHELLE.corrupted, " Jones", " Jones"),
]


@pytest.mark.parametrize("mistaken", MISTAKES)
def test_a_mistake_is_told_in_one_line_and_its_mend_mends_it(mistaken):
    reply = ask({"view": "prompts"}, mistaken)
    assert "\n" not in reply["error"] and reply["clean"]["tokens"] and reply["corrupted"]["tokens"]
    mended = Experiment(**mistaken.to_dict() | reply["mends"][0]["change"])
    assert "error" not in ask({"view": "prompts"}, mended)
    assert "error" in ask(
        {"view": "sweep", **{k: v for k, v in what().items() if k != "cell"}, "metric": "logit_diff"}, mistaken
    )


def test_a_mistake_in_the_prompts_is_told_at_every_question():
    answers, mistaken = Answers(MODEL), Experiment("a b c", "a b", " c")
    replies = [unpack(answers.reply(mistaken, {"view": "attention", "run": "clean"})) for _ in range(2)]
    assert "error" in replies[0] and replies[0] == replies[1]


def test_an_answer_that_is_better_with_a_space_can_be_given_one():
    reply = ask({"view": "prompts"}, Experiment(MICHELLE.clean, MICHELLE.corrupted, "Jones", " Smith"))
    assert "error" not in reply and {"answer": " Jones"} in [mend["change"] for mend in reply["mends"]]


def test_metrics_are_those_that_the_answers_allow():
    def of(**answers):
        return ask({"view": "prompts"}, Experiment(MICHELLE.clean, MICHELLE.corrupted, **answers))["metrics"]

    assert of() == ["kl_divergence", "cross_entropy"]
    assert "probability" in of(answer=" Jones") and "logit_diff" not in of(answer=" Jones")
    assert "logit_diff" in of(answer=" Jones", wrong_answer=" Smith")


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"view": "unknown"},
        {"view": ["lens"]},
        {"view": "lens"},
        {"view": "lens", "run": "other"},
        {"view": "lens", "run": "clean", "more": 1},
        {"view": "lens", "run": "patched"},
        {"view": "lens", "run": "patched", **what(cell=10**6)},
        {"view": "lens", "run": "patched", **what(cell=-1)},
        {"view": "patch", **what(site="nowhere")},
        {"view": "patch", **what(axes=["layer", "layer"])},
        {"view": "patch", **what(axes=[1])},
        {"view": "patch", **what(window=9)},
        {"view": "patch", **what(window=True)},
        {"view": "patch", **what(direction="sideways")},
        {"view": "arrays", "run": "clean", "layer": 5},
        {"view": "head", "run": "clean", "layer": 0, "head": 4},
        {"view": "circuit", "metric": "rank", "n": 5},
        {"view": "circuit", "metric": "logit_diff", "n": 0},
        {"view": "task", "task": "unknown", "seed": 0},
    ],
)
def test_a_wrong_question_has_an_error_for_an_answer(question):
    reply = ask(question)
    assert "\n" not in reply["error"] and reply["key"] == json.dumps(question, sort_keys=True, separators=(",", ":"))


# ---- other models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_without_text_is_asked_in_ids(dtype):
    model = tiny_model(dtype=dtype)
    answers = Answers(model)
    start = answers.start("live", IDS)
    assert start["experiment"]["clean"] == [3, 5, 7, 9] and start["tasks"] == ["induction"] and not start["named"]
    json.dumps(start, allow_nan=False)
    cell = what("z", ("layer", "head"), cell=1)
    for question in [{"view": "prompts"}, {"view": "patch", **cell}, {"view": "lens", "run": "patched", **cell}]:
        assert "error" not in unpack(answers.reply(IDS, question))
    drawn = unpack(answers.reply(IDS, {"view": "task", "task": "induction", "seed": 1}))["experiment"]
    assert "error" not in unpack(answers.reply(drawn, {"view": "prompts"}))
    assert "error" not in unpack(answers.reply(first_experiment(model), {"view": "prompts"}))


@pytest.mark.parametrize("task", ["indirect_object", "capitals", "greater_than", "induction"])
def test_tasks_draw_another_pair_for_each_seed(task):
    pairs = [ask({"view": "task", "task": task, "seed": seed})["experiment"] for seed in (0, 1)]
    assert pairs[0] != pairs[1] and "error" not in ask({"view": "prompts"}, pairs[1])


def test_every_array_of_the_strip_has_a_sentence_and_its_own_shape():
    assert [*ARRAYS] == [*DRAWN, "ln_final", "logits"] and {*ARRAYS} <= {*SITES}
    names = {"n_tokens": 11, "n_query": 11, "n_key": 11, "n_head": 4, "d_head": 32, "d_model": 128, "d_mlp": 512}
    names["n_vocab"] = 50257
    run = MODEL.run(MICHELLE.clean)
    for name, (shape, sentence) in ARRAYS.items():
        expected = run[name].shape[1:] if name in DRAWN else run[name].shape
        assert tuple(names[axis] for axis in shape.strip("()").split(", ")) == expected, name
        assert sentence.endswith(".")


def test_the_menu_offers_what_can_be_asked():
    menu = Answers(MODEL).menu()
    for site, grids in menu["axes"].items():
        for axes in grids:
            question = {"view": "sweep", "site": site, "axes": axes, "window": 1, "direction": "denoise"}
            assert Patch(site, tuple(axes)).axes == tuple(axes) and question
    assert menu["axes"]["resid_pre"][0] == ["layer", "position"] and menu["directions"] == [*DIRECTIONS]


def test_answers_keep_few_experiments():
    answers = Answers(MODEL)
    for year in range(1800, 1810):
        answers.reply(Experiment(f"In {year} the", f"In {year + 1} the", " war", " year"), {"view": "prompts"})
    assert len(answers._pairs) == 2


def test_runs_that_are_too_large_are_refused(monkeypatch):
    monkeypatch.setattr(pair_module, "MOST_BYTES", 100_000)
    for question in ({"view": "prompts"}, {"view": "lens", "run": "clean"}, {"view": "patch", **what()}):
        assert "GB" in ask(question)["error"] and "shorten the prompts" in ask(question)["error"]


def test_of_large_runs_one_is_kept(monkeypatch):
    monkeypatch.setattr(pair_module, "MEMORY", 100_000)
    pair = Pair(MODEL, MICHELLE)
    for cell in range(12, 15):
        pair.run(What("resid_pre", ("layer", "position"), 1, "denoise", cell))
        assert len(pair._runs) == 1


def test_a_pair_keeps_the_last_patched_runs():
    pair = Pair(MODEL, MICHELLE)
    cells = [What("resid_pre", ("layer", "position"), 1, "denoise", cell) for cell in range(12, 20)]
    first = pair.run(cells[0])
    assert pair.run(cells[0]) is first
    for cell in cells:
        pair.lenses([cell])
    assert [*pair._runs] == [*pair._lenses] == cells[-4:]
    assert pair.run(cells[0]) is not first
    assert len(pair.patched(cells)) == len(pair._runs) == len(cells)  # as many as are asked for at once
    with pytest.raises(NanopatchError, match="44 cells"):
        pair.run(cells[0]._replace(cell=44))
