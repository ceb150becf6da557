"""Whether an answer and a completion are the same mathematics, by math-verify.

math-verify stops itself with SIGALRM, which only a main thread may use and which long C calls
ignore: it runs in processes of its own, started afresh (JAX's threads do not survive a fork), that
can be killed.
"""

import atexit
import functools
import multiprocessing
import os

# Seconds for one completion. math-verify's own alarms (3 s) come first, unless a single C call
# outlasts them.
TIMEOUT = 10.0
START = 120.0  # seconds until the first worker answers


def all_equal(pairs: list[tuple[str, str]]) -> list[bool]:
    """Whether each (answer, completion) agrees; what takes over `TIMEOUT` does not."""
    results: list[bool] = []
    while len(results) < len(pairs):
        pool = _pool()
        # In order of submission, so whoever is waited for has been started.
        for pending in [pool.apply_async(_equal, pair) for pair in pairs[len(results) :]]:
            try:
                results.append(pending.get(TIMEOUT))
            except multiprocessing.TimeoutError:
                results.append(False)
                pool.terminate()
                _pool.cache_clear()
                break
    return results


@functools.cache
def _pool():
    pool = multiprocessing.get_context("spawn").Pool(
        min(4, os.cpu_count() or 1), initializer=_equal, initargs=("1", "1")
    )
    atexit.register(pool.terminate)
    try:
        pool.apply_async(_equal, ("1", "1")).get(START)
    except multiprocessing.TimeoutError:
        pool.terminate()
        raise RuntimeError(
            "math-verify's processes do not start: put the code of your script under `if __name__ "
            "== '__main__':`"
        ) from None
    return pool


def _equal(answer: str, completion: str) -> bool:
    """Runs in a pool process."""
    from math_verify import parse, verify

    # Without dollars math-verify would read the answer as prose and take a number out of it.
    gold = parse(answer if "$" in answer else f"${answer}$", parsing_timeout=3)
    return bool(verify(gold, parse(completion, parsing_timeout=3), timeout_seconds=3))
