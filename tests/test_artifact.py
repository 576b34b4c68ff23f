"""Honest artifacts: what is written is what is read, byte for byte and number for number."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixbank.model_store import artifact
from prefixbank.model_store.errors import ArtifactError, UnexpectedFile, WrongShape
from prefixbank.model_store.task_prompt import Provenance, TaskFamily
from tests.prompt_cases import NO_POOLER, OWN_POOLER, TINY, make_prompt, same_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.task_prompt import TaskPrompt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifact"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_prompt_reads_back_as_it_was_written(folder: Path, dtype: torch.dtype) -> None:
    prompt = make_prompt(dtype=dtype)
    artifact.write(prompt, folder)
    assert same_prompt(artifact.read(folder), prompt)


def test_a_head_alone_has_an_empty_prefix_and_no_prefix_tensor(folder: Path) -> None:
    prompt = make_prompt(layers=(), prefix_length=0)
    artifact.write(prompt, folder)
    assert artifact.read(folder).kv_N2HPD.shape == (0, 2, TINY.num_heads, 0, TINY.head_dim)
    assert "prefix.kv" not in safetensors.torch.load_file(folder / "prompt.safetensors")


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = {artifact.write(make_prompt(), tmp_path / name) for name in ("one", "two", "one")}
    assert digests == {artifact.digest(tmp_path / "one")} == {artifact.digest(tmp_path / "two")}


def test_another_process_writes_the_same_bytes(folder: Path) -> None:
    code = (
        "import sys, pathlib; from prefixbank.model_store import artifact; from tests.prompt_cases import make_prompt;"
        "print(artifact.write(make_prompt(), pathlib.Path(sys.argv[1])))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(["src", "."])}
    command = [sys.executable, "-c", code, str(folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert printed.strip() == artifact.write(make_prompt(), folder.parent / "here")


def test_every_field_changes_the_digest(tmp_path: Path) -> None:
    prompts = [
        make_prompt(),
        make_prompt(seed=1),
        make_prompt(labels=("a", "b")),
        make_prompt(position_offset=0),
        make_prompt(metrics={"accuracy": 0.5}),
        make_prompt(dtype=torch.float16),
        make_prompt(provenance=Provenance(notes="other")),
    ]
    digests = {artifact.write(prompt, tmp_path / str(index)) for index, prompt in enumerate(prompts)}
    assert len(digests) == len(prompts)


def test_the_digest_is_the_hash_of_a_manifest_that_pins_the_tensors(folder: Path) -> None:
    digest = artifact.write(make_prompt(), folder)
    manifest = artifact.read_manifest(folder)
    assert digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert manifest.tensor_file.sha256 == hashlib.sha256((folder / "prompt.safetensors").read_bytes()).hexdigest()


def test_the_tensor_file_is_plain_safetensors(folder: Path) -> None:
    prompt = make_prompt()
    artifact.write(prompt, folder)
    tensors = safetensors.torch.load_file(folder / "prompt.safetensors")
    assert torch.equal(tensors["prefix.kv"], prompt.kv_N2HPD)
    assert torch.equal(tensors["head.pooler.weight"], prompt.head.pooler_weight_MM)


def test_tensors_do_not_change_when_the_file_does(folder: Path) -> None:
    prompt = make_prompt()
    artifact.write(prompt, folder)
    read = artifact.read(folder)
    with (folder / "prompt.safetensors").open("r+b") as file:
        file.write(b"\xff" * (folder / "prompt.safetensors").stat().st_size)
    assert same_prompt(read, prompt)


def test_tensors_do_not_share_memory(folder: Path) -> None:
    artifact.write(make_prompt(), folder)
    read = artifact.read(folder)
    read.head.weight_CM.fill_(7)
    assert not (read.kv_N2HPD == 7).any()
    assert read.kv_N2HPD.untyped_storage().nbytes() == read.kv_N2HPD.nbytes


def test_reading_leaves_no_file_open(folder: Path) -> None:
    artifact.write(make_prompt(), folder)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        artifact.read(folder)
    assert len(os.listdir("/proc/self/fd")) == before


def test_views_and_gradients_are_written_as_plain_numbers(folder: Path) -> None:
    whole = torch.randn(3, 2, 2, 10, 4).requires_grad_()
    prompt = make_prompt(kv_N2HPD=whole[:, :, :, ::2])
    artifact.write(prompt, folder)
    read = artifact.read(folder).kv_N2HPD
    assert torch.equal(read, whole[:, :, :, ::2])
    assert not read.requires_grad


def test_a_folder_with_other_files_is_not_written_to(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UnexpectedFile, match="thesis"):
        artifact.write(make_prompt(), folder)
    assert os.listdir(folder) == ["thesis.tex"]


def test_what_could_not_be_read_is_not_written(folder: Path) -> None:
    with pytest.raises(WrongShape):
        artifact.write(make_prompt(kv_N2HPD=torch.zeros(4)), folder)
    assert not folder.exists()


def test_reading_a_served_prompt_takes_milliseconds(folder: Path) -> None:
    """20 prefix tokens on MiniLM with a pooler of its own: 1 MB. A tenth of hot loading's second is far off."""
    ref = TINY.model_copy(update={"num_layers": 6, "num_heads": 12, "head_dim": 32, "width": 384})
    kv_N2HPD = torch.randn(6, 2, 12, 20, 32)
    head = make_prompt().head
    wide = type(head)(OWN_POOLER, torch.randn(2, 384), torch.randn(2), torch.randn(384, 384), torch.randn(384))
    artifact.write(make_prompt(layers=tuple(range(6)), kv_N2HPD=kv_N2HPD, head=wide, backbone=ref), folder)
    artifact.read(folder)
    assert min(_seconds_to_read(folder) for _ in range(20)) < 0.05


def _seconds_to_read(folder: Path) -> float:
    begin = time.perf_counter()
    artifact.read(folder)
    return time.perf_counter() - begin


# Any text that UTF-8 can say, as labels come in every script.
_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def prompts(draw: st.DrawFn) -> TaskPrompt:
    layers = tuple(sorted(draw(st.sets(st.integers(0, TINY.num_layers - 1)))))
    family = draw(st.sampled_from([TaskFamily.TEXT_CLASSIFICATION, TaskFamily.TOKEN_CLASSIFICATION]))
    pooled = family is TaskFamily.TEXT_CLASSIFICATION
    return make_prompt(
        draw(st.integers(0, 1000)),
        layers=layers,
        prefix_length=draw(st.integers(1, 9)) if layers else 0,
        spec=draw(st.sampled_from([NO_POOLER, OWN_POOLER])) if pooled else NO_POOLER,
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])) if layers else torch.float32,
        family=family,
        labels=tuple(draw(st.lists(_texts, min_size=1, max_size=5, unique=True))),
        position_offset=draw(st.integers(0, 500)),
        metrics=draw(st.dictionaries(_texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3)),
        provenance=Provenance(
            source=draw(_texts), notes=draw(_texts), recipe=draw(st.dictionaries(_texts, _json, max_size=3))
        ),
    )


@settings(max_examples=60, deadline=None)
@given(prompts())
def test_every_honest_prompt_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, prompt: TaskPrompt
) -> None:
    folder = tmp_path_factory.mktemp("round") / "trip"
    digest = artifact.write(prompt, folder)
    read = artifact.read(folder, expect_digest=digest)
    assert same_prompt(read, prompt)
    assert artifact.seal(read).digest == digest


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_flipped_byte_is_believed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flip") / "artifact"
    digest = artifact.write(make_prompt(), folder)
    victim = folder / data.draw(st.sampled_from(["manifest.json", "prompt.safetensors"]))
    raw = bytearray(victim.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    victim.write_bytes(raw)
    with pytest.raises(ArtifactError):
        artifact.read(folder, expect_digest=digest)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_escapes_as_another_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Without a digest to compare with, damage may go unseen in a free text; never may it raise anything else."""
    folder = tmp_path_factory.mktemp("damage") / "artifact"
    prompt = make_prompt()
    artifact.write(prompt, folder)
    victim = folder / data.draw(st.sampled_from(["manifest.json", "prompt.safetensors"]))
    raw = bytearray(victim.read_bytes())
    begin = data.draw(st.integers(0, len(raw)))
    raw[begin : begin + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    victim.write_bytes(raw)
    try:
        read = artifact.read(folder)
    except ArtifactError:
        return
    assert torch.equal(read.kv_N2HPD, prompt.kv_N2HPD)
