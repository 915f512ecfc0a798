"""Many experiments: on executors, in folders, in shares. The result is the same to the bit, and nothing is lost.

Models are tiny, so that each product is computed by one thread in any process. For nano, which products of several
threads may round otherwise, a serial run is compared within rounding.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from conftest import make_pairs, tiny_model

import nanopatch
from nanopatch import (
    Experiment,
    NanopatchError,
    Noise,
    Pairs,
    Patch,
    Resample,
    Share,
    Zero,
    ablate,
    attribute,
    edge_attribution,
    faithfulness,
    merge,
    path_patch,
    save_checkpoint,
    sweep,
    tasks,
    trace,
)
from nanopatch.patching import average, folder, workers

UNEQUAL = Experiment([1, 2], [1, 2, 3], 3, 7)
PAIRS = [*make_pairs(7, 0), UNEQUAL, *make_pairs(6, 1)]  # the eighth cannot be used


def mean_logit(logits):
    return float(logits[-1].mean())


#: Calls on many experiments: everything that takes an executor, with panels, random numbers, and a metric of one's own.
CALLS = {
    "sweep": lambda model, pairs, **where: sweep(model, pairs, "z", **where),
    "panels": lambda model, pairs, **where: sweep(
        model, pairs, ["resid_pre", "mlp_out"], direction=["denoise", "noise"], metric=["logit_diff", "rank"], **where
    ),
    "own metric": lambda model, pairs, **where: sweep(model, pairs, metric=mean_logit, **where),
    "neurons": lambda model, pairs, **where: sweep(model, pairs, Patch("mlp_post", axes="neuron", neurons=3), **where),
    "attribute": lambda model, pairs, **where: attribute(model, pairs, "z", steps=2, **where),
    "zero": lambda model, pairs, **where: ablate(model, pairs, "z", Zero(), **where),
    "resample": lambda model, pairs, **where: sweep(
        model, pairs, "attn_out", corruption=Resample([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]]), **where
    ),
    "noise": lambda model, pairs, **where: trace(model, pairs, [1], seeds=[0, 1], **where),
    "paths": lambda model, pairs, **where: path_patch(model, pairs, "head", "logits", **where),
    "edges": lambda model, pairs, **where: edge_attribution(model, pairs, steps=2, **where),
    "circuit": lambda model, pairs, **where: faithfulness(
        model, pairs, [("embed", "mlp 0"), ("mlp 0", "logits")], **where
    ),
}
EVERY = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def said(result):
    """All of a result, to be compared. The text is made of it, and floats of JSON are exact."""
    return result.to_json()


class Inline(Executor):
    """Computes at once; breaks after `most` calls."""

    def __init__(self, most=None):
        self.most, self.n = most, 0

    def submit(self, function, /, *given, **named):
        future = Future()
        self.n += 1
        if self.most is not None and self.n > self.most:
            future.set_exception(BrokenExecutor())
        else:
            try:
                future.set_result(function(*given, **named))
            except BaseException as error:
                future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(2, mp_context=__import__("multiprocessing").get_context("spawn")) as executor:
        yield executor


# ---- the same to the bit ----------------------------------------------------------------------------


@EVERY
def test_executors_folders_and_shares_give_the_same_to_the_bit(call, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(average, "N_PARTS", 5)  # parts of three
    model = tiny_model(dtype=np.float32)
    expected = said(call(model, PAIRS))
    assert said(call(model, PAIRS, executor=pool)) == expected
    assert said(call(model, PAIRS, executor=Inline())) == expected
    assert said(call(model, PAIRS, folder=tmp_path / "run")) == expected
    assert said(call(model, PAIRS, folder=tmp_path / "run", executor=Inline(0))) == expected  # nothing is run twice
    order = [3, 1, 4, 2]
    for share in order[:-1]:
        assert call(model, PAIRS, folder=Share(tmp_path / "shares", share, 4)) is None
    with pytest.raises(NanopatchError, match=r"the run is not finished: 4 of 5 parts are kept in .*; the same command"):
        merge(tmp_path / "shares")
    assert said(call(model, PAIRS, folder=Share(tmp_path / "shares", order[-1], 4))) == expected
    assert said(merge(tmp_path / "shares")) == expected


def test_workers_and_threads_give_the_same_to_the_bit(tmp_path):
    model = nanopatch.load("nano")
    pairs = tasks.capitals(9)
    alone = sweep(model, pairs, "z", workers=1)
    for where in (dict(workers=2), dict(workers=3, folder=tmp_path / "run")):
        assert said(sweep(model, pairs, "z", **where)) == said(alone)
    with ThreadPoolExecutor(3) as threads:
        together = sweep(model, pairs, "z", executor=threads)
    for serial in (together, sweep(model, pairs, "z")):
        assert np.abs(serial.grid - alone.grid).max() < 1e-5 * np.abs(alone.grid).max()
        assert serial.pairs.numbers == alone.pairs.numbers == tuple(range(9))


def test_a_model_that_no_file_holds_goes_to_workers(pool, monkeypatch):
    model = nanopatch.load("nano")
    model.h[1].attn.c_proj.weight[:] = 0  # edited in memory
    pairs = tasks.capitals(3)
    expected = sweep(model, pairs)
    assert expected.grid.tolist() != sweep(nanopatch.load("nano"), pairs).grid.tolist()
    for most in (workers.MOST_PICKLED, 2**40):  # saved to a file first; pickled whole
        monkeypatch.setattr(workers, "MOST_PICKLED", most)
        found = sweep(model, pairs, executor=pool)
        assert np.abs(found.grid - expected.grid).max() < 1e-5 * np.abs(expected.grid).max()
        assert found.source.name == model.source.name


def test_what_is_left_out_is_said_in_order():
    model, given = tiny_model(), [UNEQUAL, *PAIRS[:3], "text", *PAIRS[3:]]
    skipped = sweep(model, given, "z").skipped
    assert [where for where, _ in skipped] == ["pair 0", "pair 4", "pair 9"]
    assert sweep(model, given, "z", executor=Inline()).skipped == skipped
    assert sweep(model, given, "z").pairs.numbers == tuple({*range(len(given))} - {0, 4, 9})
    with pytest.raises(NanopatchError, match="no pair can be used; pair 0 \\(and 1 more\\): "):
        sweep(model, [UNEQUAL, UNEQUAL], "z", executor=Inline())


@pytest.mark.parametrize("positions", [[{1, 2}, 3], range(2), np.array([1, 2]), range(-2, 0), [{-1, -2}]])
def test_what_is_patched_may_be_sets_ranges_and_arrays(positions, tmp_path):
    model, patch = tiny_model(), Patch("resid_pre", positions=positions)
    expected = said(sweep(model, PAIRS, patch))
    for _ in range(2):
        assert said(sweep(model, PAIRS, patch, folder=tmp_path / "run")) == expected


def test_named_positions_beside_a_site_without_them():
    model, both = tiny_model(), [Patch("resid_pre", positions=[-1]), "z"]
    panels = sweep(model, PAIRS, both)
    assert [panels[name].n_pairs for name in panels] == [13, 13]


def test_one_experiment_in_a_folder(tmp_path):
    model, (pair,) = tiny_model(), make_pairs(1)
    alone = sweep(model, pair)
    for found in (sweep(model, pair, folder=tmp_path / "run"), sweep(model, [pair], executor=Inline())):
        assert said(found) == said(alone) and found.pairs is None


# ---- a folder that remembers ------------------------------------------------------------------------


def test_a_run_that_breaks_goes_on_and_runs_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(average, "N_PARTS", 5)
    model, run = tiny_model(), tmp_path / "run"
    with pytest.raises(NanopatchError, match=r"a worker could not start, or was killed.*\(2 of 5 parts are kept in "):
        sweep(model, PAIRS, folder=run, executor=Inline(2))
    kept = {path.name: path.stat().st_mtime_ns for path in (run / "parts").iterdir()}
    again = Inline()
    assert said(sweep(model, PAIRS, folder=run, executor=again)) == said(sweep(model, PAIRS))
    assert again.n == 3
    assert kept == {path.name: path.stat().st_mtime_ns for path in (run / "parts").iterdir() if path.name in kept}


def test_an_executor_that_was_shut_down_is_one_line():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(NanopatchError, match="the executor takes no more work .*: make a new one"):
        sweep(tiny_model(), PAIRS, executor=executor)


def test_a_worker_without_memory_is_one_line(tmp_path):
    class Small(Inline):
        def submit(self, function, /, *given):
            future = Future()
            future.set_exception(MemoryError())
            return future

    with pytest.raises(NanopatchError, match="a worker ran out of memory: take fewer workers, or less memory="):
        sweep(tiny_model(), PAIRS, executor=Small())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(model=tiny_model(seed=1)), "model.weights"),
        (dict(model=tiny_model(dtype=np.float32)), "model.weights"),
        (dict(pairs=PAIRS[:-1]), "pairs.n is 14 there, 13 here"),
        (dict(pairs=[*PAIRS[:-1], PAIRS[0]]), "pairs.sha256"),
        (dict(site="q"), "task.patched.q"),
        (dict(direction="noise"), "task.directions is ['denoise'] there, ['noise'] here"),
        (dict(metric="rank"), "task.metrics"),
        (dict(corruption=Zero()), "task"),
        (dict(corruption=Noise([1])), "task"),
    ],
)
def test_a_folder_of_another_question_is_refused(change, named, tmp_path):
    asked = dict(model=tiny_model(), pairs=PAIRS, site="z")
    run = tmp_path / "run"

    def ask(model, pairs, site, **others):
        return sweep(model, pairs, site, folder=run, **others)

    ask(**asked)
    before = sorted(run.rglob("*"))
    with pytest.raises(NanopatchError) as refused:
        ask(**asked | change)
    assert f"{run} is of another run: " in str(refused.value) and named in str(refused.value)
    assert str(refused.value).endswith("give another folder") and sorted(run.rglob("*")) == before


def test_a_model_file_that_changes_is_seen(tmp_path):
    model = nanopatch.load(save_checkpoint(tiny_model(), tmp_path / "model"))
    sweep(model, PAIRS, folder=tmp_path / "run")
    save_checkpoint(tiny_model(seed=1), tmp_path / "model2")
    shutil.copy(tmp_path / "model2/model.safetensors", tmp_path / "model/model.safetensors")
    with pytest.raises(NanopatchError, match="is of another run: model.weights"):
        sweep(nanopatch.load(tmp_path / "model"), PAIRS, folder=tmp_path / "run")
    with pytest.raises(NanopatchError, match="changed"):  # a worker would load another model than ours
        sweep(nanopatch.load(tmp_path / "model2"), PAIRS, executor=Changing(tmp_path / "model2"))


class Changing(Inline):
    """Changes the file of the model before the first part is computed."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def submit(self, function, /, *given, **named):
        if self.n == 0:
            save_checkpoint(tiny_model(seed=2), self.folder.with_name("other"))
            os.replace(self.folder.with_name("other") / "model.safetensors", self.folder / "model.safetensors")
        workers.model_of.cache_clear()
        return super().submit(function, *given, **named)


def test_parts_that_are_cut_off_are_computed_again_and_damaged_ones_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(average, "N_PARTS", 5)
    model, run = tiny_model(), tmp_path / "run"
    expected = said(sweep(model, PAIRS, folder=run))
    part = run / "parts/00002.npz"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NanopatchError, match="not finished: 4 of 5"):
        merge(run)
    again = Inline()
    assert said(sweep(model, PAIRS, folder=run, executor=again)) == expected and again.n == 1
    at = whole.index(b"NUMPY") + 130
    part.write_bytes(whole[:at] + b"\xff\xff" + whole[at + 2 :])
    with pytest.raises(NanopatchError, match=r"00002.npz cannot be used \(.*\): remove it, and run again$"):
        merge(run)
    shutil.copy(run / "parts/00001.npz", part)
    with pytest.raises(NanopatchError, match=r"00002.npz cannot be used \(.*it is a part of another run, or another"):
        merge(run)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such lock: run this on Linux or macOS")
def test_two_runs_at_once_in_one_folder(tmp_path):
    model, run = tiny_model(), tmp_path / "run"

    class Second(Inline):
        def submit(self, function, /, *given):
            with pytest.raises(NanopatchError, match="another run is at work in .*: wait for it, or stop it"):
                sweep(model, PAIRS, folder=run)
            return super().submit(function, *given)

    assert said(sweep(model, PAIRS, folder=run, executor=Second())) == said(sweep(model, PAIRS))


def test_of_two_who_write_a_file_once_one_does(tmp_path):
    folder.write_once(tmp_path / "a", b"first")
    folder.write_once(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


def test_what_every_pair_gave_may_be_in_a_file(tmp_path, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(average, "N_PARTS", 5)
    expected = sweep(model, PAIRS, "z")
    monkeypatch.setattr(average, "IN_MEMORY", 100)
    found = sweep(model, PAIRS, "z", folder=tmp_path / "run")
    assert said(found) == said(expected)
    assert (tmp_path / "run/result-0-grid.npy").exists() and not found.pairs.values.flags.owndata
    assert said(merge(tmp_path / "run")) == said(expected)


@pytest.mark.parametrize("where", ["no/such\0folder", "a file"])
def test_a_folder_that_cannot_be_is_one_line(where, tmp_path):
    (tmp_path / "a file").write_text("")
    with pytest.raises(NanopatchError, match="cannot write|no folder"):
        sweep(tiny_model(), PAIRS, folder=tmp_path / where)
    with pytest.raises(NanopatchError, match="is no folder of a run|cannot read"):
        merge(tmp_path / "a file")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(executor="pool"), "an Executor of concurrent.futures' kind is expected"),
        (dict(workers=0), "a number of processes is expected, at least 1"),
        (dict(workers=True), "a number of processes is expected"),
        (dict(workers=2, executor=Inline()), "not both"),
        (dict(folder=Share("run", 0, 4)), "share 0 of 4: of 100, the first is 1 and the last 100"),
        (dict(folder=Share("run", 5, 4)), "share 5 of 4"),
        (dict(folder=Share("run", "1", 4)), "share '1' of 4"),
    ],
)
def test_wrong_arguments(given, words):
    with pytest.raises(NanopatchError, match=words):
        sweep(tiny_model(), PAIRS, **given)


def test_a_metric_that_no_process_or_folder_can_be_told(pool, tmp_path):
    model, own = tiny_model(), lambda logits: 0.5 + float(logits[-1, 3])
    with pytest.raises(NanopatchError, match="the metric cannot be sent to another process .*: define it by `def`"):
        sweep(model, PAIRS, metric=own, executor=pool)
    with pytest.raises(NanopatchError, match="a folder cannot tell the metric <lambda> from another"):
        sweep(model, PAIRS, metric=own, folder=tmp_path / "run")
    for metric in (nanopatch.metrics.probability_of([1, 2]), mean_logit):
        expected = said(sweep(model, PAIRS, metric=metric))
        assert said(sweep(model, PAIRS, metric=metric, executor=pool, folder=tmp_path / "two")) == expected
        shutil.rmtree(tmp_path / "two")
    sweep(model, PAIRS, metric=nanopatch.metrics.probability_of([1, 2]), folder=tmp_path / "two")
    with pytest.raises(NanopatchError, match="of another run: task.metrics"):
        sweep(model, PAIRS, metric=nanopatch.metrics.probability_of([1, 3]), folder=tmp_path / "two")


# ---- faults in other processes ----------------------------------------------------------------------

SCRIPT = """
import nanopatch
if __name__ == "__main__":
    model, pairs = nanopatch.load("nano"), nanopatch.tasks.indirect_object(60, seed=3)
    nanopatch.sweep(model, pairs, "z", workers=2, folder="run").save("result.json")
"""


def parts_in(run):
    return len(list((run / "parts").glob("*.npz"))) if (run / "parts").exists() else 0


def wait_for_parts(run, n, process):
    while parts_in(run) < n and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals: run this on Linux or macOS")
@pytest.mark.parametrize(("who", "number"), [("parent", "SIGKILL"), ("worker", "SIGKILL"), ("parent", "SIGINT")])
def test_a_kill_loses_nothing_that_was_done(who, number, tmp_path):
    """scripts/kill_runs.py does this many times at random moments."""
    (tmp_path / "script.py").write_text(SCRIPT)
    started = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for_parts(tmp_path / "run", 5, started)
    victim = started.pid
    if who == "worker":
        children = subprocess.run(["pgrep", "-P", str(victim), "-f", "spawn_main"], capture_output=True, text=True)
        victim = int(children.stdout.split()[0])
    os.kill(victim, getattr(signal, number))
    _, errors = started.communicate(timeout=60)
    assert started.returncode != 0
    if who == "worker":
        assert "a worker could not start, or was killed" in errors and "are kept in run" in errors
    names = {path.name: path.read_bytes() for path in (tmp_path / "run/parts").glob("*.npz")}
    assert len(names) >= 5
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, timeout=120)
    assert all((tmp_path / "run/parts" / name).read_bytes() == content for name, content in names.items())
    result = nanopatch.Sweep.load(tmp_path / "result.json")
    assert result.n_pairs == 60 and result.pairs.numbers == tuple(range(60))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits of this kind: run this on Linux or macOS")
def test_a_full_disk_is_one_line_and_leaves_no_half_part(tmp_path):
    """A limit of 6 KB for each file: the manifest fits, a part does not."""
    code = (
        "import resource, nanopatch; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "nanopatch.sweep(nanopatch.load('nano'), nanopatch.tasks.capitals(3), folder='run')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith(
        "nanopatch.errors.NanopatchError: cannot write run/parts/00000.npz: "
    )
    assert "(0 of 3 parts are kept in run; the same command goes on)" in done.stderr
    assert not list((tmp_path / "run/parts").iterdir())


def test_a_script_without_a_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import nanopatch\nnanopatch.sweep(nanopatch.load('nano'), nanopatch.tasks.capitals(4), workers=2)"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and 'needs `if __name__ == "__main__":` around what it does' in done.stderr


# ---- the command line -------------------------------------------------------------------------------


@pytest.fixture
def pair_file(tmp_path):
    rows = [[p.clean, p.corrupted, p.answer, p.wrong_answer] for p in tasks.capitals(8)]
    rows.insert(3, ["The sky is", "The sea is not", " a", " b"])
    names = ["clean", "corrupted", "answer", "wrong_answer"]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows), "utf-8")
    return path


def test_shares_on_the_command_line(pair_file, tmp_path, capsys):
    from nanopatch.cli import main

    run, out = str(tmp_path / "run"), str(tmp_path / "out.json")
    ask = ["patch", "--pairs", str(pair_file), "--site", "z"]
    assert main([*ask, "-o", out]) == 0
    alone = nanopatch.Sweep.load(out)
    capsys.readouterr()
    assert main([*ask, "--folder", run, "--shard", "2/2"]) == 0
    assert capsys.readouterr().out == f"4 of 9 parts are kept in {run}; the same command goes on\n"
    assert main(["merge", run]) == 1
    assert "the run is not finished: 4 of 9 parts are kept in" in capsys.readouterr().err
    assert main([*ask, "--folder", run, "--shard", "1/2", "--workers", "1"]) == 0
    assert main(["merge", run, "-o", out, "--pairs-output", str(tmp_path / "pairs.csv")]) == 0
    merged = nanopatch.Sweep.load(out)
    assert np.abs(merged.grid - alone.grid).max() < 1e-5 * np.abs(alone.grid).max() and merged.n_pairs == 8
    assert merged.skipped == alone.skipped and "line 4" in merged.skipped[0][0]
    assert (tmp_path / "pairs.csv").read_text().splitlines()[0].startswith("pair,baseline_clean,baseline_corrupted,")
    capsys.readouterr()
    assert main(["merge", run, "--furthest", "2,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all("from the mean)  The capital of " in line for line in lines)
    assert main(["merge", run, "--furthest", "9,9"]) == 1
    assert "is no cell of a grid of (4, 4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    ["attribute --site z", "path --senders head --receivers logits", "edges -n 20", "heads", "heads --scores"],
)
def test_every_command_with_pairs_takes_a_folder(command, pair_file, tmp_path, capsys):
    from nanopatch.cli import main

    ask = [*command.split(), "--pairs", str(pair_file)]
    assert main(ask) == 0
    alone = capsys.readouterr().out
    ask += ["--folder", str(tmp_path / "run")]
    assert main([*ask, "--shard", "1/2"]) == 0
    assert "of 9 parts are kept in" in capsys.readouterr().out
    assert main(ask) == 0
    assert capsys.readouterr().out.replace("-0.00", " 0.00") == alone.replace("-0.00", " 0.00")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--experiment", "michelle", "--folder", "run"], "are for many pairs: give --pairs FILE"),
        (["--experiment", "michelle", "--workers", "2"], "are for many pairs: give --pairs FILE"),
        (["--pairs", "pairs.jsonl", "--shard", "1/2"], "--shard needs --folder"),
        (["--pairs", "pairs.jsonl", "--folder", "run", "--shard", "3/2"], "is no share such as 3/100"),
        (["--pairs", "pairs.jsonl", "--folder", "run", "--shard", "all"], "is no share such as 3/100"),
        (["--pairs", "pairs.jsonl", "--workers", "0"], "a number of processes is expected, at least 1"),
    ],
)
def test_wrong_options_are_one_line(arguments, words, pair_file, monkeypatch, capsys):
    from nanopatch.cli import main

    monkeypatch.chdir(pair_file.parent)
    try:
        status = main(["patch", *arguments])
    except SystemExit as ended:
        status = ended.code
    errors = capsys.readouterr().err
    assert status != 0 and words in errors and errors.count("\n") == 1
    assert not (pair_file.parent / "run").exists()


# ---- what each pair gave ----------------------------------------------------------------------------


def test_pairs_are_the_single_results():
    model, used = tiny_model(), [pair for pair in PAIRS if pair is not UNEQUAL]
    result = sweep(model, PAIRS, "z", direction="noise")
    singles = [sweep(model, pair, "z", direction="noise") for pair in used]
    pairs = result.pairs
    assert len(pairs) == result.n_pairs == 13 and 7 not in pairs.numbers
    assert np.array_equal(pairs.values, [single.grid for single in singles])
    assert np.array_equal(pairs.baseline_clean, [single.baseline_clean for single in singles])
    assert np.array_equal(pairs.normalised("clean"), [single.normalised for single in singles])
    assert np.array_equal(pairs.values.mean(axis=0), result.grid)
    error = pairs.values.std(axis=0, ddof=1) / np.sqrt(13)
    assert np.allclose(error, result.standard_error, rtol=1e-12)


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_pairs_are_saved_with_the_result_and_alone(ending, tmp_path):
    result = sweep(tiny_model(), PAIRS, "z")
    result.save(tmp_path / f"result.{ending}")
    assert said(nanopatch.Sweep.load(tmp_path / f"result.{ending}")) == said(result)
    result.pairs.save(tmp_path / f"pairs.{ending}")
    assert said(Pairs.load(tmp_path / f"pairs.{ending}")) == said(result.pairs)
    (row, *_) = result.pairs.to_rows()
    assert row["pair"] == 0 and row["1,0"] == result.pairs.values[0, 1, 0] and len(row) == 3 + result.grid.size
    assert result.pairs._repr_png_().startswith(b"\x89PNG") and "13 pairs" in str(result.pairs)


def test_the_furthest_pairs():
    pairs = sweep(tiny_model(), PAIRS, "z").pairs
    column = pairs.values[:, 1, 0]
    rows = pairs.furthest(1, 0, k=3)
    assert [row["pair"] for row in rows] == [
        pairs.numbers[i] for i in np.argsort(-np.abs(column - column.mean()), kind="stable")[:3]
    ]
    assert rows[0]["value"] - rows[0]["from_mean"] == pytest.approx(column.mean())
    for wrong in [(0,), (0, 0, 0), (9, 0), ()]:
        with pytest.raises(NanopatchError, match="is no cell of a grid of"):
            pairs.furthest(*wrong)


def test_the_bootstrap_interval_covers_as_often_as_it_says():
    """Of means of 30 numbers of a normal distribution, over 300 draws: the 90% interval holds 0 in 80% to 96%."""
    random_numbers = np.random.default_rng(0)
    inside = 0
    for seed in range(300):
        values = random_numbers.normal(size=(30, 1))
        low, high = Pairs(tuple(range(30)), values).interval(0.9, 200, seed)
        inside += bool(low[0] <= 0 <= high[0])
    assert 0.80 < inside / 300 < 0.96


def test_the_interval_of_the_normalised_mean():
    result = sweep(tiny_model(), PAIRS, "z")
    low, high = result.pairs.interval(base=result.base, seed=1)
    assert low.shape == high.shape == result.grid.shape and (low <= high).all()
    assert ((low <= result.normalised + 1e-9) & (result.normalised - 1e-9 <= high)).mean() > 0.9
    again = result.pairs.interval(base=result.base, seed=1)
    assert np.array_equal(again, (low, high))
    for wrong in (0, 1, -1, 2):
        with pytest.raises(NanopatchError, match="a level between 0 and 1 is expected"):
            result.pairs.interval(wrong)


# ---- common ground ----------------------------------------------------------------------------------

FACTS = [
    ("The capital of France is", "The capital of Italy is", " Paris", " Rome", "France"),
    ("The capital city of Spain is", "The capital city of Japan is", " Madrid", " Tokyo", "Spain"),
    ("In Peru, the capital is", "In Cuba, the capital is", " Lima", " Havana", "Peru"),
]


def facts(**options):
    return [Experiment(*texts, marks={"subject": subject}, **options) for *texts, subject in FACTS]


@pytest.mark.parametrize("options", [{}, dict(prepend_bos=True)])
@pytest.mark.parametrize("ask", [sweep, attribute, ablate])
def test_prompts_of_different_lengths_are_averaged_at_named_positions(ask, options):
    """As single results at the positions that the names stand for."""
    model, pairs, shift = nanopatch.load("nano"), facts(**options), bool(options)
    names = ["before subject", "first subject", "subject", "last subject", "after subject", {-2, -1}, -1]
    subjects, n_tokens = [3, 4, 1], [5, 6, 6]
    result = ask(model, pairs, Patch("resid_pre", positions=names))
    assert result.labels("position") == [*names[:5], "-2+-1", "-1"] and result.n_pairs == 3
    for pair, subject, n, values in zip(pairs, subjects, n_tokens, result.pairs.values, strict=True):
        at, last = subject + shift, n + shift - 1
        numbers = [at - 1, at, at, at, at + 1, {last - 1, last}, last]
        assert np.array_equal(ask(model, pair, Patch("resid_pre", positions=numbers)).grid, values)
    assert {row["position"] for row in result.to_rows()} == {*names[:5], "-2+-1", "-1"}


def test_a_mark_of_several_tokens_or_of_positions():
    model = nanopatch.load("nano")
    text = "Anna Brown met Peter Young. Anna", "Anna Smith met Peter Young. Anna", " Brown", " Smith"
    for mark, first, last in (("Anna Brown", 0, 1), ([0, 1], 0, 1), ("Peter Young", 3, 4)):
        pair = Experiment(*text, marks={"person": mark})
        named = sweep(model, [pair, pair], Patch("resid_pre", positions=["first person", "last person", "person"]))
        numbers = sweep(model, [pair, pair], Patch("resid_pre", positions=[first, last, {first, last}]))
        assert np.array_equal(named.grid, numbers.grid)


@pytest.mark.parametrize(
    ("positions", "marks", "words"),
    [
        (["subject"], None, "it marks no 'subject': give Experiment"),
        (["object"], {"subject": "France"}, "it marks no 'object'; it marks subject"),
        (["subject"], {"subject": "Italy"}, "must occur once in the clean prompt"),
        (["subject"], {"subject": "a"}, "must occur once in the clean prompt"),
        (["subject"], {"subject": [9]}, r"at the positions \[9\], and there are 0 to 4"),
        (["before subject"], {"subject": [0]}, "there is no token before subject"),
        (["after subject"], {"subject": [4]}, "there is no token after subject"),
        ([-6], None, "position -6 does not exist: it has 5 tokens"),
    ],
)
def test_a_place_that_is_not_there_is_said(positions, marks, words):
    pair = Experiment(*FACTS[0][:4], marks=marks)
    for given in (pair, [pair, pair]):
        with pytest.raises(NanopatchError, match=words):
            sweep(nanopatch.load("nano"), given, Patch("resid_pre", positions=positions))


def test_marks_in_files_and_on_the_command_line(tmp_path, capsys):
    from nanopatch.cli import main

    names = ("clean", "corrupted", "answer", "wrong_answer")
    rows = [dict(zip(names, texts, strict=True), marks={"subject": subject}) for *texts, subject in FACTS]
    lines, cells = tmp_path / "facts.jsonl", tmp_path / "facts.csv"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    nanopatch.results.base.write_text(
        nanopatch.results.base.as_csv([row | {"marks": json.dumps(row["marks"])} for row in rows]), cells
    )
    grids = []
    for file in (lines, cells):
        ask = ["patch", "--pairs", str(file), "--positions", "subject,after subject", "-o", str(tmp_path / "out.json")]
        assert main(ask) == 0
        grids.append(nanopatch.Sweep.load(tmp_path / "out.json"))
    assert said(grids[0]) == said(grids[1])
    expected = sweep(nanopatch.load("nano"), facts(), Patch("resid_pre", positions=["subject", "after subject"]))
    assert np.array_equal(grids[0].grid, expected.grid)
    assert main(["patch", "--pairs", str(lines), "--positions=-2,-1"]) == 0
    assert "mean of 3 pairs" in capsys.readouterr().out


@pytest.mark.parametrize("marks", ["subject", {"subject": 3}, {3: "a"}])
def test_marks_are_a_dict_of_texts_or_positions(marks):
    with pytest.raises(NanopatchError, match="a dict such as"):
        Experiment("a", "b", marks=marks)


# ---- Dask -------------------------------------------------------------------------------------------


def test_a_dask_cluster_of_processes(tmp_path):
    distributed = pytest.importorskip("distributed", reason='`pip install "nanopatch[dask]"` makes this test run')
    model, pairs = nanopatch.load("nano"), tasks.capitals(6)
    expected = said(sweep(model, pairs, "z", workers=1))
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert said(sweep(model, pairs, "z", executor=client.get_executor())) == expected
        assert said(sweep(model, pairs, "z", executor=client.get_executor(), folder=tmp_path / "run")) == expected


def test_a_dask_scheduler_and_workers_from_the_command_line(tmp_path):
    distributed = pytest.importorskip("distributed", reason='`pip install "nanopatch[dask]"` makes this test run')
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--port", "0"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    started = [subprocess.Popen([*dask, "--no-dashboard"], **quiet)]
    try:
        started += [subprocess.Popen([*worker, "--no-dashboard"], **quiet) for _ in range(2)]
        model, pairs = nanopatch.load("nano"), tasks.capitals(6)
        for _ in itertools.takewhile(lambda _: not file.exists(), range(600)):
            time.sleep(0.1)
        with distributed.Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(2, timeout=60)
            found = sweep(model, pairs, "z", executor=client.get_executor())
        assert said(found) == said(sweep(model, pairs, "z", workers=1))
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)
