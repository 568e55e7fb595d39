"""Independent tasks through Dask: threads of this process, or the workers of a cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from emlab.errors import EmlabError, InputError
from emlab.runtime import choose_threads

AHEAD = 4  # calls that are handed out for each thread of a worker
PATIENCE = 10  # seconds for a scheduler to answer, and for its first worker to come


class Crew:
    """Who computes tasks; made by `hire`.

    A task whose worker dies is given to another one. It leaves its result in a file that appears
    whole, and does nothing if that file is there: what was finished is never computed again, even
    if the worker that made it is lost before it can say so.
    """

    def __init__(self, client: Any, where: str) -> None:
        self._client, self._where = client, where

    def each(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield ``function(*call)`` in the order of the calls.

        The function is of a module that the workers can import, or picklable; paths in the calls
        are absolute and lead to the same files on every worker. A task that ended three workers and
        a scheduler that is gone are an `EmlabError`.
        """
        rest = iter(calls)
        waiting: deque[Any] = deque()
        try:
            while True:
                slots = max(1, sum(self._client.nthreads().values()))
                for call in islice(rest, max(0, AHEAD * slots - len(waiting))):
                    waiting.append(self._client.submit(function, *call, pure=False))
                if not waiting:
                    return
                with self._told():
                    result = waiting[0].result()
                yield result
                waiting.popleft()
        finally:
            for future in waiting:
                future.cancel()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong, in words for a user."""
        from distributed import CancelledError, KilledWorker
        from distributed.comm import CommClosedError

        try:
            yield
        except KilledWorker as problem:
            raise EmlabError(
                "one task ended several workers, probably for lack of memory; lower --memory, or "
                "give the workers more, and go on with --resume"
            ) from problem
        except (CancelledError, CommClosedError) as problem:
            raise EmlabError(
                f"the scheduler at {self._where} is gone; start it again and go on with --resume"
            ) from problem
        except ModuleNotFoundError as problem:
            raise InputError(
                f"the workers of {self._where} cannot import {problem.name}; install emlab where "
                f"they run"
            ) from problem


@contextmanager
def hire(workers: int = 1, scheduler: str | None = None) -> Iterator[Crew | None]:
    """Yield a crew for the block, or None if one worker here is all that is asked for.

    Workers are threads of this process; the address of a Dask scheduler, ``tcp://host:8786``,
    counts more.

    Raises
    ------
    InputError
        Dask is not installed, nobody answers at the address, or the scheduler has no workers.
    """
    if workers == 1 and scheduler is None:
        yield None
        return
    distributed = _distributed()
    if scheduler is None:
        client = distributed.Client(
            processes=False,
            n_workers=1,
            threads_per_worker=workers,
            memory_limit=0,
            dashboard_address=None,
            set_as_default=False,
        )
    else:
        client = _join(distributed, scheduler)
    with client:
        yield Crew(client, scheduler or "this process")


def quiet_threads() -> None:
    """Leave the other cores to the other tasks; to be called first in a task."""
    choose_threads(None if os.environ.get("EMLAB_THREADS") else 1)


def check_crew(workers: int, scheduler: str | None) -> None:
    """Refuse what `hire` would refuse, as far as that is known without asking the network."""
    if workers < 1:
        raise InputError(f"--workers must be at least 1, got {workers}")
    if scheduler is not None and "://" not in scheduler:
        raise InputError(f"--scheduler is an address such as tcp://host:8786, not {scheduler!r}")
    if workers > 1 or scheduler is not None:
        _distributed()


def _join(distributed: Any, scheduler: str) -> Any:
    try:
        client = distributed.Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as problem:
        raise InputError(
            f"no Dask scheduler answers at {scheduler}; start one with `dask scheduler` and take "
            f"the address that it prints"
        ) from problem
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as problem:
        client.close()
        raise InputError(
            f"the scheduler at {scheduler} has no workers; start some: `dask worker {scheduler}`"
        ) from problem
    return client


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as problem:
        raise InputError(
            "--workers and --scheduler need Dask; pip install 'emlab-book[folders]'"
        ) from problem
    return distributed
