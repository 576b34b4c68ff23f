"""A process that forks store writers and kills each at one moment: `python -m tests.store_killer KIND ROOT COUNT`.

`steps`: the n-th child is killed before its n-th touch of the file system, until one gets through all of them.
`timed`: children are killed after random times, in the midst of whatever they write.
It prints how many it killed and how many findings `verify` had after any of the kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from prefixbank.model_store.store import Address, PromptStore
from tests.prompt_cases import make_prompt

if TYPE_CHECKING:
    from collections.abc import Callable

TASK = Address("acme", "intents")
TOUCHES = {"open", "os.rename", "os.mkdir", "os.utime", "os.remove", "os.rmdir", "os.scandir", "fcntl.flock"}


def live_a_life(root: Path) -> None:
    """Everything that changes a store, once."""
    store = PromptStore(root)
    one, two = (store.publish(TASK, make_prompt(seed)) for seed in (1, 2))
    store.promote(TASK, one)
    store.promote(TASK, two)
    store.rollback(TASK)
    store.delete(TASK, two)
    store.drop_alias(TASK)
    store.delete_task(TASK)


def write_for_ever(root: Path) -> None:
    store, seed = PromptStore(root), random.randrange(1 << 30)
    while True:
        seed += 1
        store.promote(TASK, store.publish(TASK, make_prompt(seed)))


def die_at(touch: int, root: Path) -> None:
    """Have the kernel kill this process just before its `touch`-th touch of the store."""
    left = touch

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in TOUCHES and (event == "fcntl.flock" or str(root) in str(arguments[0])):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def fork(deed: Callable[[], None]) -> int:
    """The id of a child that does `deed` and ends."""
    child = os.fork()
    if child == 0:
        deed()
        os._exit(0)
    return child


def was_killed(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError(f"a child failed with status {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def faults(root: Path) -> int:
    """Findings after a kill, and after the store has taken in the prompt that was being written."""
    store = PromptStore(root)
    found = [*store.verify()]
    store.promote(TASK, store.publish(TASK, make_prompt(2)))
    if store.resolve(TASK) not in {record.revision for record in store.show(TASK).revisions}:
        raise RuntimeError("what was published after the kill is not there")
    for finding in found:
        sys.stderr.write(f"{finding}\n")
    return len(found)


def kill_at_every_step(root: Path, _: int) -> tuple[int, int]:
    killed = found = 0
    while True:
        place = root / str(killed)

        def life(touch: int = killed + 1, place: Path = place) -> None:
            die_at(touch, place)
            live_a_life(place)

        if not was_killed(fork(life)):
            return killed, found
        killed += 1
        found += faults(place)


def kill_at_random_times(root: Path, count: int) -> tuple[int, int]:
    found = 0
    for _ in range(count):
        child = fork(lambda: write_for_ever(root))
        time.sleep(random.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        was_killed(child)
        found += faults(root)
    return count, found


if __name__ == "__main__":
    kind, where, how_many = sys.argv[1:]
    run = {"steps": kill_at_every_step, "timed": kill_at_random_times}[kind]
    num_killed, num_faults = run(Path(where), int(how_many))
    sys.stdout.write(f"{num_killed} killed, {num_faults} faults\n")
