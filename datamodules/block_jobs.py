"""Making many things side by side in several processes, each told by its number alone."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset

_Result = TypeVar("_Result")


def run_jobs(
    job: Callable[[int, Callable[[int], object]], _Result],
    numbers: Sequence[int],
    processes: int,
    progress: Callable[[int], object],
) -> Iterator[tuple[int, _Result]]:
    """Do a job for each number, and give its number and what it returned as each is done.

    Several processes are forked from this one, so that a job may use whatever it refers to as it is now; what it
    changes stays in them. Each computes on one thread. A GPU, and threads that were started before, they cannot use.

    Args:
        job: called with a number and with what it tells its progress to.
        numbers: of the jobs.
        processes: 1 for this one alone.
        progress: called here with all that jobs tell.

    Raises:
        ValueError: a job's own, or a process was killed; the others are stopped.
    """
    if processes == 1:
        yield from ((number, job(number, progress)) for number in numbers)
        return
    told = multiprocessing.get_context("fork").SimpleQueue()
    loader = DataLoader(
        _Jobs(job, numbers, told.put),
        batch_size=None,
        num_workers=processes,
        prefetch_factor=1,
        multiprocessing_context="fork",
        in_order=False,
        generator=torch.Generator(),  # or a seed for the workers is drawn from the one of everything else
    )
    results = iter(loader)

    def listen() -> None:
        for count in iter(told.get, None):
            progress(count)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        for number, result in results:
            if isinstance(result, ValueError):
                raise result
            yield number, result
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # a job's own begins with "Caught"
            raise
        raise ValueError(
            "a process that recorded was killed, as happens when memory runs out: free some, or set OMP_NUM_THREADS=1 "
            "to record in one process; what is finished is kept, and the same command goes on"
        ) from error
    finally:
        del results  # stops the processes
        told.put(None)
        listener.join()


class _Jobs(Dataset[tuple[int, Any]]):
    """What workers of a loader take their jobs from; a ValueError is a result, or the loader would rewrite it."""

    def __init__(
        self,
        job: Callable[[int, Callable[[int], object]], Any],
        numbers: Sequence[int],
        progress: Callable[[int], object],
    ) -> None:
        self._job, self._numbers, self._progress = job, numbers, progress

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        number = self._numbers[index]
        try:
            return number, self._job(number, self._progress)
        except ValueError as error:
            return number, error
