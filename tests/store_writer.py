"""A process that publishes and promotes without end: `python -m tests.store_writer ROOT TASK SEED COUNT`.

Prints a revision after each one that is durably published and promoted, so that a killer knows what it may expect.
"""

from __future__ import annotations

import sys

from prefixbank.model_store.store import Address, PromptStore
from tests.prompt_cases import make_prompt


def main(root: str, task: str, seed: str, count: str) -> None:
    store, address = PromptStore(root), Address.parse(task)
    say("ready")
    for number in range(int(count)):
        revision = store.publish(address, make_prompt(int(seed) + number))
        store.promote(address, revision)
        say(revision)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
