"""The command line, as a program: output, files, exit statuses, and errors in one line."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import nanopatch
from nanopatch import Mean, NanopatchError, Noise, Panels, Patch, Resample, Sweep, Zero, attribute, cli, sweep
from nanopatch.cli import main
from nanopatch.experiments import CAPITAL, ELON, MICHELLE, NAMED
from nanopatch.results.base import ENDINGS

MICHELLE_OPTIONS = [
    *("--clean", MICHELLE.clean, "--corrupted", MICHELLE.corrupted),
    *("--answer", MICHELLE.answer, "--wrong", MICHELLE.wrong_answer),
]


@pytest.fixture
def run(capsys):
    def run(*arguments):
        try:
            status = main(list(map(str, arguments)))
        except SystemExit as exit_:
            status = exit_.code
        return status, *capsys.readouterr()

    return run


def test_demo(run, tmp_path):
    status, out, err = run("demo", "-o", tmp_path / "pictures")
    assert (status, err) == (0, "")
    for name, experiment in NAMED.items():
        path = tmp_path / "pictures" / f"{name}.png"
        assert path.read_bytes().startswith(b"\x89PNG") and f"picture: {path}" in out
        assert repr(experiment.clean) in out
    assert out.count("\n  1  ") == out.count("\n 10  ") == len(NAMED)
    assert str(sweep(nanopatch.load("nano"), MICHELLE)) in out


def test_patch_prints_the_sweep(run):
    status, out, err = run("patch", *MICHELLE_OPTIONS)
    assert (status, err) == (0, "")
    assert out == f"{sweep(nanopatch.load('nano'), MICHELLE)}\n"
    assert run("patch", "--experiment", "michelle") == (0, out, "")
    status, out, _ = run("patch", *MICHELLE_OPTIONS, "--direction", "noise", "--bos")
    assert status == 0 and "corrupted into clean (noising)" in out and "<|endoftext|>" in out


def test_patch_writes_files(run, tmp_path):
    files = [tmp_path / f"out.{ending}" for ending in ("png", "csv", "npz", "json")]
    outputs = [option for file in files for option in ("-o", file)]
    status, _, err = run("patch", "--experiment", "elon", "--align", "diff", *outputs)
    assert status == 0
    assert err.splitlines() == [f"wrote {file}" for file in files]
    expected = sweep(nanopatch.load("nano"), ELON)
    for file in files[2:]:
        assert np.array_equal(Sweep.load(file).grid, expected.grid, equal_nan=True)


def test_patch_json(run):
    status, out, _ = run("patch", "--experiment", "elon", "--align", "diff", "--json")
    result = json.loads(out)
    expected = sweep(nanopatch.load("nano"), ELON)
    assert status == 0 and result["grid"][0][0] is None
    assert np.array_equal(np.array(result["grid"], float), expected.grid, equal_nan=True)
    assert result["baseline_clean"] == expected.baseline_clean and result["source"]["sha256"] == expected.source.sha256
    assert result["notes"] == expected.notes and result["normalised"][0][0] is None


def test_patch_takes_every_choice_of_the_library(run):
    nano = nanopatch.load("nano")
    status, out, _ = run(
        "patch", "--experiment", "michelle", "--site", "z,v", "--axes", "layer,head", "--direction", "both"
    )
    assert (status, out) == (0, f"{sweep(nano, MICHELLE, ('z', 'v'), direction=('denoise', 'noise'))}\n")
    status, out, _ = run("patch", "--experiment", "michelle", "--metric", "logit_diff,rank", "--window", 2, "--json")
    expected = sweep(nano, MICHELLE, Patch(window=2), metric=["logit_diff", "rank"])
    panels = json.loads(out)
    assert status == 0 and {name: panels[name]["grid"] for name in expected} == {
        name: s.grid.tolist() for name, s in expected.items()
    }
    status, out, _ = run("patch", "--experiment", "michelle", "--site", "mlp_post", "--axes", "neuron", "--neurons", 3)
    assert (status, out) == (0, f"{sweep(nano, MICHELLE, Patch('mlp_post', axes='neuron', neurons=3))}\n")
    status, out, _ = run("patch", "--experiment", "michelle", "--layers", "0,1+2", "--positions", "1,10")
    assert (status, out) == (0, f"{sweep(nano, MICHELLE, Patch(layers=[0, [1, 2]], positions=[1, 10]))}\n")


def test_patch_without_a_second_prompt(run, tmp_path):
    nano = nanopatch.load("nano")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{MICHELLE.clean}\n\n{MICHELLE.corrupted}\n")
    for how in ("mean", "resample"):
        status, out, _ = run("patch", "--experiment", "michelle", "--site", "z", "--corrupt", how, "--prompts", prompts)
        by = {"mean": Mean, "resample": Resample}[how]([MICHELLE.clean, MICHELLE.corrupted])
        expected = nanopatch.ablate(nano, MICHELLE, "z", by)
        assert (status, out) == (0, f"{expected}\n")
    status, out, _ = run(
        *("patch", "--clean", MICHELLE.clean, "--answer", " Jones", "--wrong", " Smith"),
        *("--corrupt", "noise", "--noise-at", "0,1", "--metric", "probability"),
    )
    assert (status, out) == (0, f"{nanopatch.trace(nano, MICHELLE, [0, 1])}\n")
    status, out, err = run("patch", "--experiment", "michelle", "--corrupt", "mean", "--prompts", tmp_path / "no.txt")
    assert (status, out) == (1, "") and "no.txt: No such file" in err


def test_attribute(run, tmp_path):
    nano = nanopatch.load("nano")
    status, out, err = run("attribute", "--experiment", "michelle", "--site", "z", "--steps", 2)
    assert (status, out, err) == (0, f"{nanopatch.attribute(nano, MICHELLE, 'z', steps=2)}\n", "")
    picture = tmp_path / "scatter.png"
    status, out, err = run("attribute", "--experiment", "michelle", "--against-exact", picture)
    assert status == 0 and f"wrote {picture}" in err and "correlation with exact patching 0.99" in err
    assert picture.read_bytes().startswith(b"\x89PNG")
    status, out, err = run(
        "attribute", "--experiment", "michelle", "--corrupt", "zero", "--site", "z", "--against-exact", picture
    )
    expected = attribute(nano, MICHELLE, "z", corruption=Zero())
    assert (status, out) == (0, f"{expected}\n") and "correlation with exact patching" in err
    status, out, _ = run("attribute", "--experiment", "michelle", "--corrupt", "noise", "--noise-at", "0,1")
    assert (status, out) == (0, f"{attribute(nano, MICHELLE, metric='probability', corruption=Noise([0, 1]))}\n")
    assert run("attribute", "--experiment", "michelle", "--steps", 0)[0] == 1
    assert run("attribute", "--experiment", "michelle", "--metric", "rank")[0] == 1


def test_edges(run, tmp_path):
    nano = nanopatch.load("nano")
    scores = nanopatch.edge_attribution(nano, MICHELLE, direction="noise", metric="probability", steps=2)
    best = nanopatch.circuit(scores, 40)
    kept = nanopatch.faithfulness(nano, MICHELLE, best, metric="probability")
    files = [tmp_path / f"edges.{ending}" for ending in ("png", "json", "dot")]
    command = ["edges", "--experiment", "michelle", "--direction", "noise", "--metric", "probability", "--steps", 2]
    status, out, err = run(*command, "-n", 40, *[option for file in files for option in ("-o", file)])
    assert (status, err.splitlines()) == (0, [f"wrote {file}" for file in files])
    lines = [f"{edge.score:10.4f}  {edge.sender} -> {edge.receiver}" for edge in best]
    head = f"{scores.title}; {len(best)} of the best 40 edges are on a path from embed to logits"
    assert out.splitlines() == [head, *lines, f"the model with these edges alone: {kept}"]
    assert files[0].read_bytes().startswith(b"\x89PNG") and files[2].read_text() == scores.to_dot(40)
    assert json.loads(files[1].read_text())["edges"] == scores.to_rows()
    result = json.loads(run(*command, "-n", 40, "--json")[1])
    assert [(e["sender"], e["receiver"], e["score"]) for e in result["edges"]] == [
        (str(edge.sender), str(edge.receiver), edge.score) for edge in best
    ]
    assert result["circuit"]["value"] == kept.value and result["circuit"]["normalised"] == kept.normalised


def test_pairs(run, tmp_path):
    nano, file = nanopatch.load("nano"), tmp_path / "pairs.jsonl"
    lines = [json.dumps(vars(pair)) for pair in nanopatch.tasks.indirect_object(3)]
    file.write_text("\n".join([*lines, '{"clean": 1}']))
    status, out, err = run("patch", "--pairs", file, "--site", "z")
    expected = sweep(nano, nanopatch.read_pairs(file), "z")
    assert (status, out, err) == (0, f"{expected}\n", "")
    assert "mean of 3 pairs" in out and "Left out: line 4: " in out and "standard error of the mean" in out
    status, out, err = run("attribute", "--pairs", file, "--site", "z", "--against-exact", tmp_path / "scatter.png")
    expected_estimate = attribute(nano, nanopatch.read_pairs(file), "z")
    assert (status, out) == (0, f"{expected_estimate}\n") and "correlation with exact patching" in err
    result = json.loads(run("patch", "--pairs", file, "--site", "z", "--json")[1])
    assert result["n_pairs"] == 3 and np.allclose(result["standard_error"], expected.standard_error)


def test_heads(run, tmp_path):
    nano = nanopatch.load("nano")
    status, out, err = run(
        "heads", "--experiment", "michelle", "-o", tmp_path / "heads.csv", "-o", tmp_path / "heads.npz"
    )
    expected = sweep(nano, MICHELLE, ("z", "q", "k", "v", "pattern"))
    assert (status, out) == (0, f"{expected}\n")
    saved = Panels.load(tmp_path / "heads.npz")
    assert err.count("wrote ") == 2 and list(saved) == list(expected)
    assert all(np.array_equal(saved[site].grid, expected[site].grid) for site in expected)
    assert (tmp_path / "heads.csv").read_text().count("\n") == 1 + 5 * 16


def test_heads_with_scores(run, tmp_path):
    nano = nanopatch.load("nano")
    scores = nanopatch.head_scores(nano)
    assert run("heads", "--scores") == (0, f"{scores}\n", "")
    endings = ("npz", "json", "csv", "png", "svg", "pdf")
    outputs = [part for ending in endings for part in ("-o", tmp_path / f"heads.{ending}")]
    status, out, err = run("heads", "--scores", "--experiment", "michelle", "--direction", "noise", *outputs)
    effects = nanopatch.ablate(nano, MICHELLE, "z"), sweep(nano, MICHELLE, "z", direction="noise")
    expected = nanopatch.head_scores(nano, beside=effects)
    assert (status, out) == (0, f"{expected}\n") and err.count("wrote ") == len(endings)
    for ending in ("npz", "json"):
        assert nanopatch.HeadScores.load(tmp_path / f"heads.{ending}").to_json() == expected.to_json()
    assert (tmp_path / "heads.csv").read_text(encoding="utf-8").count("\n") == 1 + 16
    status, out, _ = run("heads", "--scores", *MICHELLE_OPTIONS, "--direction", "both", "--json")
    names = ["z zero-ablated", "z denoising", "z noising"]
    assert list(json.loads(out)["effects"]) == names and json.loads(out)["induction"] == scores.induction.tolist()


def test_heads_with_scores_of_prompts(run, tmp_path):
    nano, texts = nanopatch.load("nano"), ["Mary and John. Mary", "The capital of France is"]
    file, ids = tmp_path / "prompts.txt", tmp_path / "ids.txt"
    file.write_text("\n".join(texts), encoding="utf-8")
    ids.write_text("\n".join(",".join(map(str, nano.tokenize(text))) for text in texts), encoding="utf-8")
    expected = nanopatch.head_scores(nano, texts, prepend_bos=True)
    assert run("heads", "--scores", "--prompts", file, "--bos") == (0, f"{expected}\n", "")
    assert run("heads", "--scores", "--prompts", ids, "--bos", "--ids") == (0, f"{expected}\n", "")
    file.write_text("\n".join(json.dumps(pair.to_dict()) for pair in nanopatch.tasks.capitals(2)), encoding="utf-8")
    status, out, _ = run("heads", "--scores", "--pairs", file)
    assert status == 0 and "Mean of 2 pairs." in out
    file.write_text("Mary")
    status, out, err = run("heads", "--scores", "--prompts", file)
    assert (status, out) == (1, "") and "head scores need prompts of at least 2 tokens" in err


def test_generate(run, tmp_path):
    nano, prompt = nanopatch.load("nano"), CAPITAL.clean
    assert run("generate", prompt, "-n", 2) == (0, nanopatch.generate(nano, prompt, 2, as_text=True) + "\n", "")
    drawn = dict(temperature=1.0, top_k=50, top_p=0.9, n_samples=2, seed=4)
    options = ["--temperature", 1, "--top-k", 50, "--top-p", 0.9, "--samples", 2, "--seed", 4]
    ids = [one.tolist() for one in nanopatch.generate(nano, prompt, 5, **drawn)]
    status, out, _ = run("generate", prompt, "-n", 5, *options, "--json")
    tokens = [nano.token_strings(one) for one in ids]
    assert (status, json.loads(out)) == (0, {"clean": {"ids": ids, "tokens": tokens}})
    given = ",".join(map(str, nano.tokenize(prompt)))
    assert run("generate", given, "--ids", "-n", 9, "--stop", 13) == (0, " Paris.\n", "")
    outputs = [part for ending in ("json", "csv") for part in ("-o", tmp_path / f"new.{ending}")]
    assert run("generate", prompt, "-n", 5, *options, *outputs)[0] == 0
    assert json.loads((tmp_path / "new.json").read_text(encoding="utf-8")) == json.loads(out)
    rows = list(csv.DictReader((tmp_path / "new.csv").read_text(encoding="utf-8").splitlines()))
    assert [[int(row["id"]) for row in rows if row["sample"] == str(i)] for i in range(2)] == ids
    assert run("generate", prompt, "-o", tmp_path / "new.png")[0] == 2


def test_generate_patched(run):
    """The arguments of `patch`, all pieces together, are the assignment in a loop over the first round."""
    nano = nanopatch.load("nano")
    command = ["generate", "--experiment", "michelle", "-n", 4, "--json"]
    base, donor = nano.tokenize(MICHELLE.clean), nano.run(MICHELLE.corrupted)
    for round in nanopatch.generate_steps(nano, base, 4):
        for site in round:
            if round.number == 0 and site.name == "z" and site.layer in (0, 1):
                site.array[[1, 10], 2] = donor.z[site.layer, [1, 10], 2]
    chosen = ["--site", "z", "--layers", "0,1", "--positions", "1,10", "--heads", 2, "--direction", "noise"]
    status, out, _ = run(*command, *chosen)
    assert status == 0 and list(json.loads(out)) == ["clean", "corrupted", "patched"]
    assert json.loads(out)["patched"]["ids"] == [round.tokens[-4:].tolist()]
    assert run("generate", "--experiment", "capital", "--site", "resid_pre", "--layers", 1, "-n", 1)[1].split("\n") == [
        "    clean:  Paris",
        "corrupted:  Rome",
        "  patched:  Paris",
        "",
    ]
    for wrong in (["--layers", 1], ["--direction", "noise"], ["--site", "z"], ["--site", "logits"]):
        assert run("generate", "hi", *wrong)[0] == 2
    assert "the prompts have 2 and 1 tokens" in run("generate", "hi", "--corrupted", "hi there", "--site", "z")[2]


def test_lens(run, tmp_path):
    nano = nanopatch.load("nano")
    status, out, err = run("lens", CAPITAL.clean)
    assert (status, out, err) == (0, f"{nanopatch.logit_lens(nano, nano.run(CAPITAL.clean))}\n", "")
    clean, corrupted = (
        nanopatch.logit_lens(nano, nano.run(p), " Paris", " Rome").show("logit_diff")
        for p in (CAPITAL.clean, CAPITAL.corrupted)
    )
    command = ["lens", "--experiment", "capital", "--show", "logit_diff"]
    assert run(*command) == (0, f"{Panels({'clean': clean, 'corrupted': corrupted})}\n", "")
    assert run(*command, "--of", "corrupted") == (0, f"{corrupted}\n", "")
    assert run(*command, "--of", "difference") == (0, f"{clean - corrupted}\n", "")
    texts = ["lens", CAPITAL.clean, "--corrupted", CAPITAL.corrupted, "--answer", " Paris", "--wrong", " Rome"]
    assert run(*texts, "--show", "logit_diff") == run(*command)
    outputs = [option for ending in ENDINGS for option in ("-o", tmp_path / f"x{ending}")]
    result = json.loads(run(*command, "--of", "clean,difference", "--json", *outputs)[1])
    assert result["difference"]["values"] == (clean.logit_diff - corrupted.logit_diff).tolist()
    assert Panels.load(tmp_path / "x.npz").to_dict() == result and len(list(tmp_path.iterdir())) == len(ENDINGS)
    status, out, err = run("lens", "<|endoftext|> a")
    assert status == 0 and "read as text" in err
    assert run("lens", "<|endoftext|> a", "--special-tokens")[2] == ""


def test_attention(run, tmp_path):
    nano = nanopatch.load("nano")
    clean, corrupted = nano.run(MICHELLE.clean), nano.run(MICHELLE.corrupted)
    status, out, err = run("attention", MICHELLE.clean, "--layer", 1, "--head", 2)
    assert (status, out, err) == (0, f"{nanopatch.attention(nano, clean, 1, 2)}\n", "")
    status, out, _ = run("attention", "--experiment", "michelle", "--weighted", "--of", "difference", "--layer", 1)
    a, b = (nanopatch.attention(nano, r, 1, weighted=True) for r in (clean, corrupted))
    assert (status, out) == (0, f"{a - b}\n")
    outputs = [option for ending in ENDINGS for option in ("-o", tmp_path / f"x{ending}")]
    status, out, _ = run("attention", MICHELLE.clean, "--bos", "--json", *outputs)
    bos = nano.run(MICHELLE.clean, prepend_bos=True)
    assert status == 0 and json.loads(out) == nanopatch.attention(nano, bos).to_dict()
    assert nanopatch.Attention.load(tmp_path / "x.npz").to_dict() == json.loads(out)
    assert len(list(tmp_path.iterdir())) == len(ENDINGS)


def test_direct(run, tmp_path):
    nano = nanopatch.load("nano")
    expected = nanopatch.direct_logit_attribution(nano, nano.run(CAPITAL.clean), " Paris", " Rome")
    assert run("direct", CAPITAL.clean, "--answer", " Paris", "--wrong", " Rome") == (0, f"{expected}\n", "")
    assert run("direct", "--experiment", "capital") == (0, f"{expected}\n", "")
    status, out, _ = run("direct", "--experiment", "capital", "--of", "corrupted", "--position", 3, "--split", "mlp 2")
    other = nanopatch.direct_logit_attribution(
        nano, nano.run(CAPITAL.corrupted), " Paris", " Rome", position=3, split="mlp 2"
    )
    assert (status, out) == (0, f"{other}\n")
    files = {}
    for kind in ("bars", "heads", "cumulative"):
        outputs = [option for ending in ENDINGS for option in ("-o", tmp_path / f"x{ending}")]
        status, out, err = run("direct", "--experiment", "capital", "--kind", kind, "--json", *outputs)
        assert status == 0 and json.loads(out) == expected.to_dict() and err.count("wrote ") == len(ENDINGS)
        files[kind] = (tmp_path / "x.png").read_bytes()
        loaded = nanopatch.DirectAttribution.load(tmp_path / "x.npz")
        loaded.save(tmp_path / "y.png", kind)
        assert (tmp_path / "y.png").read_bytes() == files[kind]
    assert len(set(files.values())) == 3
    with pytest.raises(NanopatchError, match="kind must be one of bars, heads, cumulative, not 'pie'"):
        loaded.save(tmp_path / "z.csv", "pie")


def test_direct_of_pairs(run, tmp_path):
    """The mean of each part by name, with its standard error; pairs may differ in length."""
    nano, file = nanopatch.load("nano"), tmp_path / "pairs.jsonl"
    pairs = [MICHELLE, CAPITAL, *nanopatch.tasks.indirect_object(2)]
    file.write_text("\n".join([*(json.dumps(pair.to_dict()) for pair in pairs), '{"clean": 1}']))
    outputs = [option for ending in ENDINGS for option in ("-o", tmp_path / f"x{ending}")]
    status, out, err = run("direct", "--pairs", file, "--json", *outputs)
    mean = json.loads(out)
    alone = [
        nanopatch.direct_logit_attribution(nano, nano.run(pair.clean), pair.answer, pair.wrong_answer) for pair in pairs
    ]
    values = np.array([one.values for one in alone])
    assert status == 0 and {one.names for one in alone} == {tuple(mean["names"])}
    assert np.array_equal(mean["values"], values.mean(axis=0))
    assert np.allclose(mean["standard_error"], values.std(axis=0, ddof=1) / 2, rtol=1e-12)
    assert mean["n_pairs"] == 4 and mean["skipped"][0][0] == "line 5"
    loaded = nanopatch.DirectAttribution.load(tmp_path / "x.json")
    assert loaded.to_dict() == nanopatch.DirectAttribution.load(tmp_path / "x.npz").to_dict() == mean
    status, out, _ = run("direct", "--pairs", file)
    assert out == f"{loaded}\n" and "Mean of 4 pairs." in out and "Left out: line 5: " in out and " ± " in out
    status, out, _ = run("direct", "--pairs", file, "--position", 6, "--of", "corrupted", "--split", "mlp 0", "--json")
    assert status == 0 and json.loads(out)["n_pairs"] == 3  # the capital's prompts have 5 tokens
    assert "standard_error" in (tmp_path / "x.csv").read_text()


def test_runs_of_token_ids(run):
    tokens = CAPITAL.tokens(nanopatch.load("nano"))
    clean, corrupted = (",".join(map(str, prompt)) for prompt in tokens[:2])
    ids = [clean, "--ids", "--corrupted", corrupted]
    answers = ["--answer", str(tokens.answer), "--wrong", str(tokens.wrong_answer)]
    assert run("lens", *ids, *answers) == run("lens", "--experiment", "capital")
    assert run("attention", *ids) == run("attention", "--experiment", "capital")
    assert run("direct", *ids, *answers) == run("direct", "--experiment", "capital")


def test_a_picture_on_a_screen_needs_a_screen(run, monkeypatch):
    import matplotlib

    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    status, out, err = run("patch", "--experiment", "michelle", "--plot")
    assert (status, out) == (1, "") and "there is no display to show a picture on: write it to a file" in err


def test_every_question_can_be_asked_of_pairs_and_corruptions(run, tmp_path):
    nano, file = nanopatch.load("nano"), tmp_path / "pairs.jsonl"
    pairs = nanopatch.tasks.indirect_object(3)
    file.write_text("\n".join(json.dumps(pair.to_dict()) for pair in pairs))
    for command, expected in {
        ("path", "--senders", "head 3"): lambda: nanopatch.path_patch(nano, pairs, "head 3", "logits"),
        ("patch", "--site", "z", "--corrupt", "zero"): lambda: nanopatch.ablate(nano, pairs, "z"),
        ("patch", "--site", "z,q", "--corrupt", "noise", "--noise-at", "1"): lambda: nanopatch.trace(
            nano, pairs, [1], ["z", "q"]
        ),
    }.items():
        status, out, err = run(*command, "--pairs", file)
        assert (status, out, err) == (0, f"{expected()}\n", "")
    status, out, _ = run("edges", "--pairs", file)
    assert status == 0 and "mean of 3 pairs" in out


def test_version(run):
    assert run("--version") == (0, f"nanopatch {nanopatch.__version__}\n", "")


def test_top(run):
    status, out, err = run("top", MICHELLE.clean)
    lines = out.splitlines()
    assert (status, err, len(lines)) == (0, "", 10) and lines[0].split()[2] == "␣Jones"
    status, out, _ = run("top", MICHELLE.clean, "--json", "-k", 3)
    best = json.loads(out)
    assert len(best) == 3 and best[0]["token"] == " Jones" and 0 < best[0]["probability"] <= 1
    logits = nanopatch.load("nano", np.float64).run(MICHELLE.clean, sites="logits").logits[-1]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert best[0]["id"] == np.argmax(probabilities)
    assert np.allclose([row["probability"] for row in best], np.sort(probabilities)[:-4:-1], rtol=1e-4)


def test_tokens(run):
    status, out, _ = run("tokens", " Jones was")
    assert status == 0 and out == "  0   5437  ␣Jones\n  1    373  ␣was\n"
    status, out, _ = run("tokens", ELON.clean, ELON.corrupted)
    lines = out.splitlines()
    assert status == 0 and len(lines) == 16
    assert lines[2].split() == ["2", "20119", "␣Musk", "≠", "1", "19161", "␣Jobs"]
    assert lines[3].split() == ["3", "763", "␣co", "2", "763", "␣co"]
    status, out, _ = run("tokens", "a", "b c", "--json")
    assert json.loads(out)[0] == [None, {"position": 0, "id": 65, "token": "b"}]


def test_verify(run):
    status, out, err = run("verify")
    assert (status, err) == (0, "") and "resid_pre" in out
    assert json.loads(run("verify", "nano", "--json")[1])


@pytest.mark.parametrize("ending", ["png", "svg", "PDF"])
def test_verify_draws_the_published_picture(run, tmp_path, monkeypatch, ending):
    """What is drawn for gpt2 is in test_verify.py; here nano's grid stands for both, and its report for gpt2's."""
    ours = sweep(nanopatch.load("nano"), MICHELLE, "resid_post")
    monkeypatch.setattr(cli, "picture", lambda name: Panels({"published": ours, name: ours}))
    monkeypatch.setattr(cli, "verify", lambda name: nanopatch.verify.verify("nano"))
    file = tmp_path / f"report.{ending}"
    status, out, err = run("verify", "gpt2", "--plot", file)
    assert (status, err) == (0, f"wrote {file}\n") and out.endswith("all ok\n")
    assert file.read_bytes()


ERRORS = [
    (["top", "hello", "--model", "nope"], "no model 'nope': give nano, gpt2, "),
    (["top", ""], "the prompt is empty"),
    (["top", "a " * 200], "tokens, and this model reads 128 at most"),
    (["tokens", ""], "the prompt is empty"),
    (["patch", *("--clean", "a b", "--corrupted", "a", "--answer", " x", "--wrong", " y")], "the prompts have 2 and 1"),
    (["path", "--experiment", "elon"], "needs prompts with the same number of tokens"),
    (
        ["patch", "--clean", "a", "--corrupted", "b", "--answer", "Musk", "--wrong", " x"],
        "leading space it is one: ' Musk'",
    ),
    (
        ["patch", "--clean", "a", "--corrupted", "b", "--answer", " x", "--wrong", " x"],
        "answer and wrong answer are both",
    ),
    (["patch", *MICHELLE_OPTIONS, "-o", "/nonexistent/a.png"], "there is no folder /nonexistent"),
    (
        ["edges", "--experiment", "elon"],
        "edge attribution needs prompts with the same number of tokens",
    ),
    (["edges", "--experiment", "michelle", "-n", "3"], "the best 3 edges make no path from embed to logits"),
    (["edges", "--experiment", "michelle", "-n", "480"], "from 1 to 479 edges can be chosen"),
    (["edges", "--experiment", "michelle", "--steps", "0"], "steps=0"),
    (["attribute", "--experiment", "michelle", "--against-exact", "/nonexistent/a.png"], "there is no folder"),
    (["patch", "--experiment", "michelle", "--site", "z,z"], "is listed twice"),
    (["attention", "a", "--layer", "4"], "layer 4 does not exist: this model's are 0 to 3"),
    (["attention", "--experiment", "elon", "--of", "difference"], "cannot be subtracted"),
    (["direct", "a", "--answer", " b", "--position", "1"], "position 1: this run has positions 0 to 0"),
    (["direct", "a", "--answer", " b", "--split", "head 9.9"], "layer 9 does not exist"),
    (["direct", "a", "--answer", "Musk"], "leading space it is one: ' Musk'"),
    (["lens", "a", "--answer", " b", "--wrong", " b"], "answer and wrong answer are both"),
    (["lens", ""], "the prompt is empty"),
    (["lens", "a", "-o", "/nonexistent/a.png"], "there is no folder /nonexistent"),
    (["verify", "distilgpt2"], "distilgpt2"),
    (["verify", "--plot", "a.png"], "there is no published picture for 'nano'; there is one for gpt2"),
    (["verify", "gpt2", "--plot", "/nonexistent/a.png"], "there is no folder /nonexistent"),
    (["verify", "--debug-state", "/nonexistent/state.bin"], "cannot read /nonexistent/state.bin: No such file"),
    (["verify", "--debug-state", ""], "cannot read .: it is not a regular file"),
    (["verify", "--debug-state", "/"], "cannot read /: it is not a regular file"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_an_error_the_user_can_mend_is_one_line_and_status_1(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("nanopatch: ") and message in err and err.count("\n") == 1


USAGE = [
    [],
    ["sing"],
    ["patch"],
    ["patch", "--clean", "a"],
    ["patch", "--experiment", "michelle", "--answer", " x"],
    ["patch", *MICHELLE_OPTIONS, "-o", "picture.gif"],
    ["patch", *MICHELLE_OPTIONS, "--direction", "sideways"],
    ["patch", *MICHELLE_OPTIONS, "--layers", "one"],
    ["patch", *MICHELLE_OPTIONS, "--corrupt", "zero"],
    ["patch", "--experiment", "michelle", "--corrupt", "mean"],
    ["patch", "--experiment", "michelle", "--corrupt", "noise"],
    ["patch", "--experiment", "michelle", "--prompts", "prompts.txt"],
    ["patch", "--experiment", "michelle", "--pairs", "pairs.jsonl"],
    ["attribute", "--experiment", "michelle", "--site", "z,q", "--against-exact", "a.png"],
    ["attribute", "--experiment", "michelle", "--against-exact", "a.gif"],
    ["attribute", "--experiment", "michelle", "--corrupt", "mean"],
    ["edges", "--experiment", "michelle", "--direction", "both"],
    ["edges", "--experiment", "michelle", "--metric", "rank,probability"],
    ["edges", "--experiment", "michelle", "-o", "edges.gif"],
    ["patch", *MICHELLE_OPTIONS, "-o", "a.dot"],
    ["attribute", "--experiment", "michelle", "-o", "a.png", "--against-exact", "a.png"],
    ["heads", "--clean", "Michelle", "--corrupt", "zero", "--answer", " Jones", "--wrong", " Smith"],
    ["heads", "--experiment", "michelle", "--prompts", "prompts.txt"],
    ["heads", "--scores", "--clean", "Michelle"],
    ["heads", "--scores", "--direction", "noise"],
    ["heads", "--scores", "--ids"],
    ["heads", "--scores", "--special-tokens"],
    ["heads", "--scores", "-o", "heads.gif"],
    ["top", "a", "-k", "0"],
    ["lens"],
    ["lens", "a", "--experiment", "michelle"],
    ["lens", "a", "--show", "rank"],
    ["lens", "a", "--show", "logit_diff", "--answer", " b"],
    ["lens", "a", "--wrong", " b"],
    ["lens", "a", "--of", "clean"],
    ["lens", "--experiment", "michelle", "--of", "clean,clean"],
    ["lens", "--experiment", "michelle", "--of", "patched"],
    ["lens", "--experiment", "michelle", "--answer", " b"],
    ["lens", "--experiment", "michelle", "--corrupted", "b"],
    ["lens", "a", "--ids"],
    ["attention", "a", "--head", "1"],
    ["attention", "a", "--answer", " b"],
    ["attention", "a", "-o", "a.dot"],
    ["direct", "a"],
    ["direct", "--experiment", "michelle", "--of", "difference"],
    ["direct", "--experiment", "michelle", "--kind", "pie"],
    ["direct", "--experiment", "michelle", "--pairs", "pairs.jsonl"],
    ["direct", "a", "--pairs", "pairs.jsonl"],
    ["direct", "--pairs", "pairs.jsonl", "--split", "head 1.1"],
    ["lens", "--pairs", "pairs.jsonl"],
    ["verify", "gpt2", "--plot", "a.npz"],
    ["verify", "gpt2", "--plot", ""],
    ["verify", "gpt2", "--plot", "a.png", "--debug-state", "state.bin"],
]


@pytest.mark.parametrize("arguments", USAGE)
def test_a_wrong_command_line_is_status_2(run, arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and err and "Traceback" not in err


def test_as_a_program(tmp_path):
    def program(*arguments, **options):
        command = [sys.executable, "-m", "nanopatch", *arguments]
        return subprocess.run(command, capture_output=True, timeout=120, cwd=tmp_path, **options)

    assert b"demo" in program("--help").stdout
    failed = program("top", "x", "--model", "nope")
    assert failed.returncode == 1 and b"Traceback" not in failed.stderr
    plain = program("tokens", " Jones", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert plain.returncode == 0 and b"_Jones" in plain.stdout  # no ␣ in ASCII, and no error over it


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m nanopatch tokens '{'a ' * 20000}' | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=120)
    assert done.stderr == "" and done.returncode == 0 and done.stdout.count("\n") == 1


def test_token_ids_in_place_of_texts(tmp_path, capsys):
    """A model whose vocabulary is not text takes ids in every command."""
    pair = MICHELLE.tokens(nanopatch.load("nano"))
    clean, corrupted = (",".join(map(str, prompt)) for prompt in pair[:2])
    ids = ["--ids", "--clean", clean, "--corrupted", corrupted, "--answer", str(pair[2]), "--wrong", str(pair[3])]
    commands = (["patch", "--site", "z"], ["attribute"], ["heads"], ["heads", "--scores"], ["path"], ["edges"])
    for command in commands:
        assert main([*command, *MICHELLE_OPTIONS, "--json"]) == 0
        as_texts = json.loads(capsys.readouterr().out)
        assert main([*command, *ids, "--json"]) == 0
        as_ids = json.loads(capsys.readouterr().out)
        assert without_experiment(as_ids) == without_experiment(as_texts), command
    (tmp_path / "prompts.txt").write_text(f"{corrupted}\n{clean}\n", encoding="utf-8")
    given = ["--ids", "--clean", clean, "--answer", str(pair[2]), "--wrong", str(pair[3])]
    assert main(["patch", *given, "--corrupt", "mean", "--prompts", str(tmp_path / "prompts.txt")]) == 0
    for wrong in (["--ids", "--clean", "a"], ["--ids", "--answer", "1,2"]):
        with pytest.raises(SystemExit):
            main(["patch", *ids, *wrong])


def without_experiment(value):
    if isinstance(value, dict):
        return {name: without_experiment(item) for name, item in value.items() if name != "experiment"}
    return value


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16", "utf-8"])
def test_any_stdout_can_be_written_to_and_json_is_exact(encoding):
    """Windows' code pages have no ␣ and no ░; a prompt may have what no code page has."""
    pair = ["--clean", "I saw 猫 and", "--corrupted", "I saw 狗 and", "--answer", " a", "--wrong", " b"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}

    def printed(*command):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, check=True)
        assert not done.stderr
        return done.stdout.decode(encoding)

    program = (
        f"import nanopatch as n; print(n.sweep(n.load('nano'), n.Experiment({pair[1]!r}, {pair[3]!r}, ' a', ' b')))"
    )
    lines = printed("-c", program).splitlines()
    space = "␣" if encoding.startswith("utf") else "_"
    assert len(lines) >= 8 and any(f" {space}saw " in line for line in lines)
    assert printed("-m", "nanopatch", "patch", *pair).splitlines() == lines
    for command in ("patch", "heads", "path", "edges"):
        stored = json.loads(printed("-m", "nanopatch", command, *pair, "--json"))
        experiments = [stored.get("experiment"), *(own["experiment"] for own in stored.values() if is_result(own))]
        assert {experiment["clean"] for experiment in experiments if experiment} == {pair[1]}


def is_result(value):
    return isinstance(value, dict) and "experiment" in value


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a system with /dev/full makes this test run")
def test_streams_that_are_closed_or_full(tmp_path):
    def run(redirection, command="patch --experiment michelle --json"):
        shell = f"{sys.executable} -m nanopatch {command} {redirection}"
        return subprocess.run(["sh", "-c", shell], capture_output=True, text=True, cwd=tmp_path)

    full = run(">/dev/full")
    assert (full.returncode, full.stderr) == (1, "nanopatch: cannot write to stdout: No space left on device\n")
    closed = run(">&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    quiet = run("2>&-", "patch --experiment michelle --json -o x.csv")
    assert quiet.returncode == 0 and json.loads(quiet.stdout)["kind"] == "sweep"  # "wrote x.csv" is not in it
    assert run("2>&-", "patch --experiment michelle --site nosuch").returncode == 1


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "a\0.png", "folder.png", "pipe.png"])
def test_an_output_that_cannot_be_written_is_said_before_the_work(name, capsys, tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr(cli, "load", lambda name: pytest.fail("the model was loaded first"))
    commands = ["patch"], ["heads"], ["heads", "--scores"], ["path"], ["edges"], ["attribute"]
    for command in (*commands, ["lens"], ["attention"], ["direct"]):
        assert cli.main([*command, "--experiment", "michelle", "-o", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("nanopatch: cannot write ") and error.count("\n") == 1
    (tmp_path / "demo" / "elon.png").mkdir(parents=True)
    assert cli.main(["demo", "-o", str(tmp_path / "demo")]) == 1


def test_a_file_of_prompts(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfThe capital\r\n\r\nof\xe2\x80\xa8France\rand\n")
    assert cli.read_prompts(tmp_path / "prompts.txt") == ["The capital", "of\u2028France", "and"]
    (tmp_path / "prompts.txt").write_bytes("The capital".encode("utf-16"))
    with pytest.raises(NanopatchError, match="prompts.txt: it is UTF-16: save it as UTF-8 text"):
        cli.read_prompts(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(NanopatchError, match="a pointer of Git LFS"):
        cli.read_prompts(tmp_path / "prompts.txt")
    os.mkfifo(tmp_path / "pipe")
    for read in (cli.read_prompts, nanopatch.read_pairs):
        with pytest.raises(NanopatchError, match="pipe: it is not a regular file"):
            read(tmp_path / "pipe")


def test_an_error_is_one_line_whatever_was_given(capsys):
    for line in (["patch", "--nothing", "a\nb\x1b[1m"], ["top", "a", "--model", "a\nb"], ["heads", "-o", "a\nb/c.png"]):
        try:
            assert main(line) == 1
        except SystemExit as stop:
            assert stop.code == 2
        error = capsys.readouterr().err
        assert error.startswith("nanopatch: ") and error[:-1].isprintable() and r"a\nb" in error
