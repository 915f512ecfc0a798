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
from ..model.checkpoint import load
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


def compute(
    executor: Executor,
    model: Model,
    task: Task,
    parts: Mapping[int, Sequence[Given]],
    standard: Standard,
) -> Iterator[tuple[int, Part]]:
    """The results of parts, by their numbers, as they get done.

    If one fails, no further one is begun, and those that get done are given first. So it is after Ctrl-C, but then
    nothing is waited for.
    """
    if isinstance(executor, ProcessPoolExecutor):  # others may have ways of their own to send a function
        check_pickles(task)
    with reference(model) as referred:
        futures = {executor.submit(work, referred, task, given, standard): n for n, given in parts.items()}
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
    with may_map():
        model: Model = pickle.loads(referred)
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


@contextlib.contextmanager
def reference(model: Model) -> Iterator[bytes]:
    """The model as a worker is sent it: by the name of its files, or whole if it is small and is not what files hold.

    A large one that is not what files hold is saved to a temporary folder first.
    """
    referred = pickle.dumps(model)
    if len(referred) <= MOST_PICKLED:
        yield referred
        return
    with tempfile.TemporaryDirectory(prefix="nanopatch-") as folder:
        twin = load(save_checkpoint(model, folder), model.dtype)
        twin.vocabulary, twin.trained_tokens, twin.token_names = (
            model.vocabulary,
            model.trained_tokens,
            model.token_names,
        )
        yield pickle.dumps(twin)


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
        stop.set()
        executor.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
