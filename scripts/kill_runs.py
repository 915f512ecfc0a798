"""Kill runs over many pairs at random moments: nothing is lost, nothing is counted twice, no half file stays.

    python scripts/kill_runs.py                  # 50 kills, seed 0: of workers, of the parent, of Dask's scheduler
    python scripts/kill_runs.py --kills 5 --seed 3

Each round starts a run with a folder, kills one of its processes at a random moment (SIGKILL; the parent also by SIGINT
and SIGTERM), and starts it again, until it is finished. After each kill, all parts that were there are still there,
byte for byte, and each is whole. The last result is that of a run that nobody disturbed, to the bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

SCRIPT = """
import sys, nanopatch
if __name__ == "__main__":
    model, pairs = nanopatch.load("nano"), nanopatch.tasks.indirect_object(int(sys.argv[2]), seed=3)
    where = {}
    if sys.argv[1] == "pool":
        where["workers"] = 2
    elif sys.argv[1] == "dask":
        import distributed
        client = distributed.Client(scheduler_file="scheduler.json", timeout=20)
        client.wait_for_workers(1, timeout=20)
        where["executor"] = client.get_executor()
    nanopatch.sweep(model, pairs, "z", folder="run", **where).save("result.json")
"""
ENVIRONMENT = os.environ | {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}  # so that a serial run gives the same bits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=150)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        alone = Path(name, "alone")
        run_to_end(alone, "serial", options.pairs)
        expected = (alone / "result.json").read_bytes()
        counts: dict[str, int] = {}
        done, round_number = 0, 0
        while done < options.kills:
            folder, round_number = Path(name, f"round{round_number}"), round_number + 1
            kind = rng.choice(["serial", "pool", "pool", "dask"])
            while done < options.kills:
                victim = one_kill(folder, kind, options.pairs, rng)
                if victim is None:  # it had ended before
                    break
                done += 1
                counts[victim] = counts.get(victim, 0) + 1
            run_to_end(folder, kind, options.pairs)
            assert (folder / "result.json").read_bytes() == expected, f"another result after kills of {kind}"
    print(f"{done} kills, seed {options.seed}, {round_number} runs: ", end="")
    print(", ".join(f"{victim} {n}" for victim, n in sorted(counts.items())))
    print("nothing lost, nothing twice, no half part; every result is that of an undisturbed run, to the bit")


def start(folder, kind, n_pairs):
    """The processes of a run: {name: process}."""
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(SCRIPT)
    started = {}
    options = dict(cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if kind == "dask":
        (folder / "scheduler.json").unlink(missing_ok=True)
        dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", "scheduler.json"]
        started["scheduler"] = subprocess.Popen([*dask, "--port", "0", "--no-dashboard"], **options)
        while not (folder / "scheduler.json").exists():
            time.sleep(0.05)
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", "scheduler.json"]
        command = [*worker, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        started |= {f"Dask worker {i}": subprocess.Popen(command, **options) for i in range(2)}
    started["parent"] = subprocess.Popen([sys.executable, "script.py", kind, str(n_pairs)], **options)
    return started


def stop(started):
    for process in started.values():
        if process.poll() is None:
            process.kill()
        process.wait()


def run_to_end(folder, kind, n_pairs):
    started = start(folder, kind, n_pairs)
    try:
        assert started["parent"].wait(timeout=300) == 0, f"the run of {kind} did not end well"
    finally:
        stop(started)


def one_kill(folder, kind, n_pairs, rng):
    """Start or go on, kill one process at a random moment, and look at the parts. Who it was; None if all was done."""
    before = parts_of(folder)
    started = start(folder, kind, n_pairs)
    try:
        time.sleep(rng.uniform(0.3, 5.0))
        if started["parent"].poll() is not None:
            return None
        victims = dict(started)
        if kind == "pool":
            found = subprocess.run(
                ["pgrep", "-P", str(started["parent"].pid), "-f", "spawn_main"], capture_output=True, text=True
            )
            if found.stdout:
                victims["pool worker"] = int(found.stdout.split()[0])
        victim = rng.choice(sorted(victims))
        number = signal.SIGKILL
        if victim == "parent":
            number = rng.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        process = victims[victim]
        os.kill(process if isinstance(process, int) else process.pid, number)
        time.sleep(rng.uniform(0, 0.5))
        if victim != "parent" and rng.random() < 0.5:  # what the parent still does by itself
            try:
                started["parent"].wait(timeout=60)
            except subprocess.TimeoutExpired:
                print(f"after a kill of {victim} the parent still waits: it is stopped", flush=True)
    finally:
        stop(started)
    after = parts_of(folder)
    assert all(after.get(part) == content for part, content in before.items()), f"a part was lost or changed: {victim}"
    for part in after:
        assert zipfile.ZipFile(folder / "run/parts" / part).testzip() is None, f"half a part: {part}"
    return victim.rstrip(" 01")


def parts_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "run/parts").glob("*.npz")}


if __name__ == "__main__":
    main()
