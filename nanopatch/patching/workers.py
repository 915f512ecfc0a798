"""Parts of many experiments, computed by the workers of an executor: any one of `concurrent.futures`' kind.

Nothing here schedules. `Executor.submit` does: of a process pool of the standard library, of Dask (a cluster's
`Client.get_executor()`), of mpi4py or of executorlib. A worker is sent a reference to the model, not its weights: it
loads the model by its name or path, once, and maps the file if it can, so that workers of one computer share it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, as_completed
from typing import Any

from ..errors import NanopatchError
from ..model.backward import named_weights
from ..model.checkpoint import load, loaded_as, place_of, weights_sha256
from ..model.convert import save_checkpoint
from ..model.gpt2 import Model
from ..model.stored import may_map
from ..progress import Stopped, watch
from .average import Given, Part, Standard, Task, carry_out_part

#: A model that is pickled whole, because it is not what files hold, is saved to a file if it takes more bytes.
MOST_PICKLED = 2**22
#: Each worker of our own pool computes with one thread. These are read when NumPy is loaded.
ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class OtherWeights(NanopatchError):
    """A worker found other weights under the name of a model than the model has."""


def compute(
    executor: Executor,
    model: Model,
    task: Task,
    parts: Mapping[int, Sequence[Given]],
    standard: Standard,
) -> Iterator[tuple[int, Part]]:
    """The results of parts, by their numbers, as they get done."""
    if isinstance(executor, ProcessPoolExecutor):  # others may have ways of their own to send a function
        check_pickles(task)
    named = by_name(model)
    if named is not None:
        try:
            yield from submit(executor, named, task, parts, standard)
            return
        except OtherWeights:  # the model was edited in memory, or its files are others now
            pass
    with by_value(model) as whole:
        yield from submit(executor, whole, task, parts, standard)


def submit(
    executor: Executor, referred: bytes, task: Task, parts: Mapping[int, Sequence[Given]], standard: Standard
) -> Iterator[tuple[int, Part]]:
    """As `compute`, of a model that workers find by a reference.

    If one fails, no further one is begun, and those that get done are given first. So it is after Ctrl-C, but then
    nothing is waited for.
    """
    try:
        futures = {executor.submit(work, referred, task, given, standard): n for n, given in parts.items()}
    except (BrokenExecutor, RuntimeError) as error:  # RuntimeError: it was shut down
        raise NanopatchError(f"the executor takes no more work ({error}): make a new one") from None
    failed: Exception | None = None
    try:
        for future in as_completed(list(futures)):
            number = futures.pop(future)
            try:
                part = result_of(future)
            except Exception as error:
                failed = failed or error
                for other in futures:
                    other.cancel()
            else:
                yield number, part
    except KeyboardInterrupt:
        for future, number in futures.items():
            if not future.cancel() and future.done() and not future.exception():
                yield number, future.result()
        raise
    finally:
        for future in futures:
            future.cancel()
    if failed is not None:
        raise failed


def result_of(future: Future[Part]) -> Part:
    """What a worker returned. NanopatchError if it died, or ran out of memory."""
    try:
        return future.result()
    except BrokenExecutor:
        raise NanopatchError(
            "a worker could not start, or was killed, perhaps for its memory: take fewer workers, or less memory=; a "
            'script that asks for workers needs `if __name__ == "__main__":` around what it does'
        ) from None
    except MemoryError:
        raise NanopatchError("a worker ran out of memory: take fewer workers, or less memory=") from None
    except CancelledError:
        raise NanopatchError("the executor was shut down before all was done") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "distributed":  # such as Dask's KilledWorker
            raise
        raise NanopatchError(f"the workers failed: {type(error).__name__}: {error}") from None


def check_pickles(task: Task) -> None:
    """NanopatchError if a task cannot be sent to another process."""
    try:
        pickle.dumps(task)
    except Exception as error:  # PicklingError, AttributeError, TypeError
        raise NanopatchError(
            f"the metric cannot be sent to another process ({error}): define it by `def` at the top of a module"
        ) from None


# ---- in a worker ------------------------------------------------------------------------------------

_stop: Any = None  # the event that stops the workers of our own pool


def work(referred: bytes, task: Task, given: Sequence[Given], standard: Standard) -> Part:
    """Compute a part."""
    model = model_of(referred)
    with watch(_look_whether_stopped) if _stop is not None else contextlib.nullcontext():
        part = carry_out_part(model, task, given, standard)
    if model.source and model.source.files and not model.source.is_unchanged:  # it may be mapped
        raise NanopatchError(f"the files of {model.source.name} changed while a worker used them: start again")
    return part


@functools.lru_cache(maxsize=1)
def model_of(referred: bytes) -> Model:
    """The model of `by_name` or `by_value`. OtherWeights if there are other weights under its name."""
    name, wanted, *others = pickle.loads(referred)
    if name is None:
        model: Model = wanted
        return model
    dtype, config, given = others
    with may_map():
        model = loaded_as(name, dtype, config)
    if weights_sha256(model) != wanted:
        raise OtherWeights(f"the files of {name} hold other weights")
    vars(model).update(given)
    return model


def _look_whether_stopped() -> None:
    if _stop.is_set():
        raise Stopped


def _begin(stop: Any) -> None:
    """What each worker of our own pool begins with. Ctrl-C is for its parent; and it does not outlive its parent."""
    import multiprocessing
    import signal
    from multiprocessing.connection import wait

    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        assert parent is not None
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


# ---- in the parent ----------------------------------------------------------------------------------


def by_name(model: Model) -> bytes | None:
    """A model as a worker is sent it: by the name of its files, with a hash of its weights. None if it has no files.

    (Pickling it would load it again here, to see whether the files still hold it.)
    """
    source = model.source
    if not source or not source.files or not source.is_unchanged:
        return None
    return pickle.dumps((place_of(source), weights_sha256(model), model.dtype, model.config, set_by_user(model)))


def set_by_user(model: Model) -> dict[str, Any]:
    """What of a model its user may have set, whatever its files say."""
    return {name: getattr(model, name) for name in ("vocabulary", "trained_tokens", "token_names")}


@contextlib.contextmanager
def by_value(model: Model) -> Iterator[bytes]:
    """A model that no files hold: pickled whole, or saved to a temporary folder if it is large."""
    if sum(array.nbytes for array in named_weights(model).values()) <= MOST_PICKLED:
        yield pickle.dumps((None, model))
        return
    with tempfile.TemporaryDirectory(prefix="nanopatch-") as folder:
        twin = load(save_checkpoint(model, folder), model.dtype)
        vars(twin).update(set_by_user(model))
        named = by_name(twin)
        assert named is not None
        yield named


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Executor]:
    """A pool of processes, each with one thread. At its end, whatever still runs is stopped."""
    import multiprocessing

    if multiprocessing.parent_process() is not None and multiprocessing.current_process()._inheriting:  # type: ignore[attr-defined]
        raise NanopatchError('a script that asks for workers needs `if __name__ == "__main__":` around what it does')
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    stop = context.Event()
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # for the processes that it starts
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(stop,))
    try:
        yield executor
    finally:
        queue = getattr(executor, "_call_queue", None)
        if getattr(executor, "_broken", False) and queue is not None:
            # Before Python 3.11.5 its thread waits for ever to send work to workers that are gone (CPython's gh-94777).
            queue._reader.close()
        stop.set()
        executor.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
