"""A pool of processes and a manager (multiprocessing), whose sockets lie in a directory of the temporary one."""

import multiprocessing
import os
import tempfile

from station import PLACE, dumped

tempfile.tempdir = str(PLACE)


def square(number: int) -> int:
    return number * number


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(2) as pool:
        numbers = manager.list([1])
        assert pool.map(square, range(4)) == [0, 1, 4, 9]
        dumped()
        assert pool.map(square, range(4)) == [0, 1, 4, 9]
        numbers.append(2)
        assert list(numbers) == [1, 2]
        assert os.listdir(PLACE)
