"""Every declared configuration compiles for three GPUs that are not here, as lean as the gate wants it.

Built are the main dtype and head dim for sm_90, and one in `EVERY` of all configurations for each target, which is what
a test has time for; `python -m benchmarks.compiled` builds all for all. Programs of their own do it: in this process
the interpreter stands where the compiler would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.compiled import LIMITS, blocks_per_multiprocessor, count_instructions, resources
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(1200)  # a compile takes seconds on a busy machine, and there are many

MAIN = "bfloat16 D64"
EVERY = 16


def run_compiler(*arguments: str) -> Any:
    """Run a program with Triton's compiler on, and read the JSON that it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(["src", ".", environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("{"), done.stderr
    return json.loads(done.stdout)


def assert_sound(*arguments: str) -> None:
    compiled = run_compiler("benchmarks.compiled", "--output", "json", *arguments)["compiled"]
    assert compiled
    assert not {(each["name"], each["target"]): each["faults"] for each in compiled if each["faults"]}


def test_the_main_configurations_are_sound_on_sm_90() -> None:
    assert_sound("--target", "90", "--only", MAIN)


def test_a_sample_of_all_configurations_is_sound_on_every_target() -> None:
    assert_sound("--every", str(EVERY))


@pytest.fixture(scope="module")
def launched() -> Any:
    return run_compiler("tests.launch_cases")


def test_what_is_launched_is_what_was_declared(launched: Any) -> None:
    assert launched["undeclared"] == {}


def test_a_hundred_random_batches_compile_nothing_again(launched: Any) -> None:
    assert {"attend", "attend_disentangled", "distance_gradient"} <= launched["recompiled"].keys()
    assert not any(launched["recompiled"].values()), launched["recompiled"]


@pytest.fixture(scope="module")
def judged() -> Any:
    return run_compiler("tests.gate_kernels")


def test_a_sound_kernel_passes_the_gate(judged: Any) -> None:
    assert judged["sound"] == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("one stage", "no asynchronous copy"),
        ("too much shared memory", "524288 bytes of shared memory, of 232448"),
        ("many sums", "spills ("),
        ("few registers", "spills ("),
        ("fp32", "no tensor-core instruction"),
        ("unnamed argument", "do not name each argument once: ['BLOCK_M']"),
        ("no such type", "does not compile: AssertionError: Unsupported lhs dtype int32"),
    ],
)
def test_the_gate_refuses_what_it_should(judged: Any, name: str, fault: str) -> None:
    assert fault in judged[name][0]


def test_a_report_of_resources_is_read() -> None:
    report = "Function product:\n  REG:122 STACK:8 SHARED:1024 LOCAL:4 CONSTANT[0]:576 TEXTURE:0\n"
    assert resources(report) == (122, 12, 1024)


def test_instructions_are_counted_by_opcode_whatever_guards_them() -> None:
    disassembly = (
        "        /*0000*/                   LDC R1, c[0x0][0x37c] ;  /* 0x00000df00 */\n"
        "        /*0370*/              @!P0 LDGSTS.E.BYPASS.LTC128B.128 [R4+0x2000], desc[UR8][R12.64] ;\n"
        "        /*11e70*/             @UP2 HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], !UPT ;\n"
        "        /*11e80*/                  HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR4], R24 ;\n"
    )
    assert count_instructions(disassembly) == {"LDC": 1, "LDGSTS": 1, "HGMMA": 2}


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "blocks"),
    [(122, 4, 73728, 3), (255, 8, 0, 1), (32, 4, 0, 16), (64, 4, 10 * 1024, 8), (64, 4, 300 * 1024, 0)],
)
def test_blocks_fit_by_registers_threads_and_shared_memory(
    registers: int, warps: int, shared: int, blocks: int
) -> None:
    assert blocks_per_multiprocessor(LIMITS[90], registers, warps, shared) == blocks
