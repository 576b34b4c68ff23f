"""Every way a tensor file can lie, built and refused by name, and prompts that would be such lies."""

from __future__ import annotations

import shutil
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch

from prefixbank.model_store import artifact, errors
from prefixbank.model_store.task_prompt import Head, HeadSpec, Pooler, TaskFamily
from tests.prompt_cases import NO_POOLER, TINY, Forger, forge, make_prompt, refused, spell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KV, WEIGHT, BIAS = "prefix.kv", "head.weight", "head.bias"
POOLER_WEIGHT, POOLER_BIAS = "head.pooler.weight", "head.pooler.bias"


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    return forge(tmp_path / "artifact")


# the tensor file's header


@pytest.mark.parametrize("length", [0, 1, 65_537, 1 << 20, 1 << 62, (1 << 64) - 1])
def test_a_header_length_that_no_artifact_has(forger: Forger, length: int) -> None:
    forger.put_tensor_file(struct.pack("<Q", length) + forger.tensor_path.read_bytes()[8:])
    refused(forger.folder, errors.TensorFileUnreadable, "claims")


def test_a_header_length_beyond_the_file(forger: Forger) -> None:
    forger.put_tensor_file(struct.pack("<Q", 60_000) + forger.tensor_path.read_bytes()[8:])
    refused(forger.folder, errors.TensorFileTruncated, "claims 60000 bytes of a file of")


@pytest.mark.parametrize("header", [b"[]", b"{,}", b"\xff\xff", b'{"a":1,"a":2}', b"[" * 50 + b"]" * 50, b'"head"'])
def test_a_header_that_is_none(forger: Forger, header: bytes) -> None:
    def forged(_: dict[str, Any], payload: bytearray) -> bytes:
        return struct.pack("<Q", len(header)) + header + bytes(payload)

    forger.edit_tensor_file(forged)
    refused(forger.folder, errors.TensorFileUnreadable)


def test_metadata_in_the_header(forger: Forger) -> None:
    forger.edit_tensor_file(lambda header, _: header.update(__metadata__={"format": "pt"}))
    refused(forger.folder, errors.TensorFileUnreadable, "__metadata__")


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": 1},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
    ],
)
def test_a_header_entry_that_is_none(forger: Forger, entry: object) -> None:
    forger.edit_tensor_file(lambda header, _: header.update({BIAS: entry}))
    refused(forger.folder, errors.TensorFileUnreadable, BIAS)


@pytest.mark.parametrize("name", [KV, WEIGHT, BIAS, POOLER_WEIGHT, POOLER_BIAS])
def test_a_tensor_that_is_missing(forger: Forger, name: str) -> None:
    forger.edit_tensor_file(lambda header, _: header.pop(name) and None)
    refused(forger.folder, errors.TensorMissing, name)


def test_a_tensor_too_many(forger: Forger) -> None:
    def smuggle(header: dict[str, Any], payload: bytearray) -> None:
        header["smuggled"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(payload), len(payload) + 4]}
        payload.extend(b"\0\0\0\0")

    forger.edit_tensor_file(smuggle)
    refused(forger.folder, errors.TensorUnexpected, "smuggled")


def test_a_tensor_under_another_name(forger: Forger) -> None:
    forger.edit_tensor_file(lambda header, _: header.update({"prefix.vk": header.pop(KV)}))
    refused(forger.folder, errors.TensorMissing, KV)


@pytest.mark.parametrize("shape", [[3, 2, 2, 4, 5], [240], [3, 2, 2, 5, 4, 1], [], [1 << 62, 1 << 62]])
def test_a_shape_that_is_not_the_manifests(forger: Forger, shape: list[int]) -> None:
    forger.edit_tensor_file(lambda header, _: header[KV].update(shape=shape))
    refused(forger.folder, errors.WrongShape, KV)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64", "I32", "F8_E4M3", "", 7])
def test_a_dtype_that_is_not_the_manifests(forger: Forger, dtype: object) -> None:
    forger.edit_tensor_file(lambda header, _: header[KV].update(dtype=dtype))
    refused(forger.folder, errors.WrongDtype, KV)


def _shift(name: str, begin: int, end: int) -> Callable[[dict[str, Any], bytearray], None]:
    def change(header: dict[str, Any], _: bytearray) -> None:
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return change


def test_tensors_that_overlap(forger: Forger) -> None:
    """Two tensors on the same bytes."""

    def change(header: dict[str, Any], _: bytearray) -> None:
        header[POOLER_BIAS]["data_offsets"] = [0, 4 * TINY.width]  # where head.bias begins

    forger.edit_tensor_file(change)
    refused(forger.folder, errors.TensorLayoutInvalid, "overlaps")


def test_a_hole_between_tensors(forger: Forger) -> None:
    last = max(_header(forger), key=lambda name: _header(forger)[name]["data_offsets"][0])

    def change(header: dict[str, Any], payload: bytearray) -> None:
        begin, end = header[last]["data_offsets"]
        header[last]["data_offsets"] = [begin + 64, end + 64]
        payload[begin:begin] = b"smuggled" * 8

    forger.edit_tensor_file(change)
    refused(forger.folder, errors.TensorLayoutInvalid, "hole")


@pytest.mark.parametrize(("begin", "end"), [(0, -4), (4, 0), (0, 4), (8, -8), (1 << 60, 1 << 60 + 1)])
def test_an_extent_that_does_not_hold_the_shape(forger: Forger, begin: int, end: int) -> None:
    forger.edit_tensor_file(_shift(BIAS, begin, end))
    refused(forger.folder, errors.TensorLayoutInvalid, BIAS)


@pytest.mark.parametrize("offsets", [[], [0], [0, 8, 16]])
def test_an_extent_that_is_not_a_pair(forger: Forger, offsets: list[int]) -> None:
    forger.edit_tensor_file(lambda header, _: header[BIAS].update(data_offsets=offsets))
    refused(forger.folder, errors.TensorLayoutInvalid, BIAS)


def _header(forger: Forger) -> dict[str, Any]:
    found: dict[str, Any] = {}
    forger.edit_tensor_file(lambda header, _: found.update(header))
    return found


# the tensor file's bytes


@pytest.mark.parametrize("kept", [0, 4, 8, 9, 100, -4, -1])
def test_a_truncated_tensor_file(forger: Forger, kept: int) -> None:
    forger.tensor_path.write_bytes(forger.tensor_path.read_bytes()[:kept])
    refused(forger.folder, errors.TensorFileTruncated)


@pytest.mark.parametrize("cut", [1, 4, 64])
def test_a_payload_shorter_than_its_header_says(forger: Forger, cut: int) -> None:
    """Header and manifest's size disagree only with the tensors' extents."""

    def change(header: dict[str, Any], payload: bytearray) -> bytes:
        padding = " " * cut  # the file keeps the size that its shapes need
        text = spell(header, b"")[8:] + padding.encode()
        return struct.pack("<Q", len(text)) + text + bytes(payload[:-cut])

    forger.edit_tensor_file(change)
    refused(forger.folder, errors.TensorFileTruncated, "end at byte")


def test_bytes_after_the_manifests_size(forger: Forger) -> None:
    with forger.tensor_path.open("ab") as file:
        file.write(b"PK\x03\x04")
    refused(forger.folder, errors.TensorFileOverlong, "promises")


def test_bytes_after_the_last_tensor(forger: Forger) -> None:
    forger.edit_tensor_file(lambda _, payload: payload.extend(b"PK\x03\x04"))
    refused(forger.folder, errors.TensorFileOverlong, "follow the last tensor")


def test_a_number_changed_in_the_tensors(forger: Forger) -> None:
    raw = bytearray(forger.tensor_path.read_bytes())
    raw[-1] ^= 1
    forger.tensor_path.write_bytes(raw)
    refused(forger.folder, errors.DigestMismatch, "tensor file")


def test_a_folder_under_another_digest(forger: Forger) -> None:
    with pytest.raises(errors.DigestMismatch, match="manifest"):
        artifact.read(forger.folder, expect_digest="00" * 32)


def test_tensors_of_another_artifact(forger: Forger, tmp_path: Path) -> None:
    other = forge(tmp_path / "other", make_prompt(seed=1))
    shutil.copy(other.tensor_path, forger.tensor_path)
    refused(forger.folder, errors.DigestMismatch)


@pytest.mark.parametrize("name", [KV, WEIGHT, BIAS, POOLER_WEIGHT, POOLER_BIAS])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite(forger: Forger, name: str, number: float) -> None:
    forger.edit_tensor_file(_poke(name, struct.pack("<f", number)))
    refused(forger.folder, errors.NotFinite, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrow_number_that_is_not_finite(tmp_path: Path, dtype: torch.dtype) -> None:
    forger = forge(tmp_path / "artifact", make_prompt(dtype=dtype))
    forger.edit_tensor_file(_poke(KV, b"\xff\x7f"))
    refused(forger.folder, errors.NotFinite, KV)


@pytest.mark.parametrize("number", [65_520.0, -65_520.0, 1e30])
@pytest.mark.parametrize("name", [KV, WEIGHT])
def test_a_number_that_half_precision_cannot_hold(forger: Forger, name: str, number: float) -> None:
    forger.edit_tensor_file(_poke(name, struct.pack("<f", number)))
    refused(forger.folder, errors.OverflowsHalf, name)


def test_the_largest_half_is_held(forger: Forger) -> None:
    forger.edit_tensor_file(_poke(KV, struct.pack("<f", 65_504.0)))
    assert artifact.read(forger.folder).kv_N2HPD.to(torch.float16).isfinite().all()


def _poke(name: str, number: bytes) -> Callable[[dict[str, Any], bytearray], None]:
    """Put one number into the last place of a tensor."""

    def change(header: dict[str, Any], payload: bytearray) -> None:
        end = header[name]["data_offsets"][1]
        payload[end - len(number) : end] = number

    return change


# prompts that must not become artifacts


def _head(**tensors: torch.Tensor | None) -> Head:
    honest = make_prompt().head
    kept = {name: getattr(honest, name) for name in ("weight_CM", "bias_C", "pooler_weight_MM", "pooler_bias_M")}
    return Head(honest.spec, **(kept | tensors))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"kv_N2HPD": torch.full((3, 2, 2, 5, 4), float("nan"))}, errors.NotFinite),
        ({"kv_N2HPD": torch.full((3, 2, 2, 5, 4), 1e6)}, errors.OverflowsHalf),
        ({"kv_N2HPD": torch.zeros(3, 2, 2, 5, 4, dtype=torch.float64)}, errors.WrongDtype),
        ({"kv_N2HPD": torch.zeros(3, 2, 4, 5, 2)}, errors.ManifestInvalid),
        ({"kv_N2HPD": torch.zeros(3, 2, 2, 20)}, errors.WrongShape),
        ({"head": _head(weight_CM=torch.zeros(3, 8))}, errors.ManifestInvalid),
        ({"head": _head(weight_CM=torch.zeros(2, 8, dtype=torch.float16))}, errors.ManifestInvalid),
        ({"head": _head(pooler_bias_M=None)}, errors.TensorMissing),
        ({"head": _head(pooler_weight_MM=None)}, errors.TensorMissing),
        ({"head": Head(NO_POOLER, torch.zeros(2, 8), torch.zeros(2), torch.zeros(8, 8))}, errors.TensorUnexpected),
        ({"labels": ("same", "same")}, errors.LabelsMismatch),
        ({"layers": (0, 3, 1)}, errors.LayersMismatch),
        ({"layers": (0, 1, 4)}, errors.LayersMismatch),
        ({"position_offset": -1}, errors.ManifestInvalid),
        ({"metrics": {"loss": float("nan")}}, errors.ManifestInvalid),
        ({"family": TaskFamily.TOKEN_CLASSIFICATION}, errors.PoolerMismatch),
        ({"backbone": TINY.model_copy(update={"fingerprint": "?"})}, errors.ManifestInvalid),
    ],
)
def test_a_dishonest_prompt_is_not_written(
    tmp_path: Path, fields: dict[str, Any], error: type[errors.ArtifactError]
) -> None:
    with pytest.raises(error) as caught:
        artifact.write(make_prompt(**({"labels": ("no", "yes")} | fields)), tmp_path / "artifact")
    assert caught.type is error
    assert not (tmp_path / "artifact").exists()


def test_an_own_pooler_needs_an_activation(tmp_path: Path) -> None:
    with pytest.raises(errors.PoolerMismatch):
        artifact.write(make_prompt(spec=HeadSpec(pooler=Pooler.OWN)), tmp_path / "artifact")
