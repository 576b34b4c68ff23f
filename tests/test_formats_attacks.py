"""Hostile and broken sources: nothing of them is run, and each is refused with a reason that names the file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prefixbank.model_store import errors
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import FormatError, NotFinite, SourceInvalid, SourceUnreadable, UnknownFormat
from prefixbank.model_store.formats.detect import detect
from prefixbank.model_store.formats.importer import import_prompt
from prefixbank.model_store.formats.source_files import MAX_JSON_BYTES, read_json, read_tensors
from tests.format_cases import TEXT, Published
from tests.tiny import tiny_backbone_folder

NAME = "pytorch_model.bin"
HONEST = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(3, dtype=torch.float16)}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.mkdir, (str(self.mark),)


def saved(path: Path, value: Any = None, **how: Any) -> Path:
    torch.save(HONEST if value is None else value, path, **how)
    return path


def read(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder, ("model.safetensors", NAME))


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_both_of_torchs_own_forms_are_read(tmp_path: Path, is_zip: bool) -> None:
    saved(tmp_path / NAME, _use_new_zipfile_serialization=is_zip)
    found = read(tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in HONEST.items())


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, is_zip: bool) -> None:
    bomb = {"a": torch.ones(1), "b": Bomb(tmp_path / "mark")}
    saved(tmp_path / NAME, bomb, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(SourceUnreadable, match=r"its pickle asks for posix\.mkdir, and only tensors are read"):
        read(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(SourceUnreadable):
        read(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_under_a_safe_name_is_not_run(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors", {"b": Bomb(tmp_path / "mark")})
    with pytest.raises(SourceUnreadable, match="not a whole safetensors file"):
        read(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_torchs_advice_to_read_it_anyway_is_not_passed_on(tmp_path: Path) -> None:
    saved(tmp_path / NAME, {"b": Bomb(tmp_path / "mark")})
    with pytest.raises(SourceUnreadable) as refusal:
        read(tmp_path)
    assert "weights_only" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else NAME)
    if kind == "safetensors":
        save_file(HONEST, path)
    else:
        saved(path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for end in range(0, len(whole), 1 + len(whole) // 60):
        path.write_bytes(whole[:end])
        with pytest.raises((SourceUnreadable, SourceInvalid)):
            read(tmp_path)


def test_flipped_bytes_never_escape_the_error_tree(tmp_path: Path) -> None:
    whole = saved(tmp_path / NAME).read_bytes()
    for place in range(0, len(whole), 1 + len(whole) // 80):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / NAME).write_bytes(damaged)
        with contextlib.suppress(FormatError):
            read(tmp_path)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """Zeros pack a thousandfold; torch.save never packs."""
    plain = saved(tmp_path / "plain.bin", {"a": torch.zeros(1 << 20)})
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / NAME, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in source.infolist():
            packed.writestr(member.filename, source.read(member))
    with pytest.raises(SourceUnreadable, match=r"compressed, as torch\.save never does"):
        read(tmp_path)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    """A stride of zero makes a few bytes look like terabytes."""
    saved(tmp_path / NAME, {"a": torch.ones(1).expand(1 << 40)})
    with pytest.raises(SourceInvalid, match="more than the file can hold"):
        read(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        [torch.ones(1)],
        {"a": 1},
        {"a": {"b": torch.ones(1)}},
        {1: torch.ones(1)},
        {"a": torch.ones(2, 2).to_sparse()},
        {"a": torch.ones(1, dtype=torch.complex64)},
        torch.ones(3),
    ],
    ids=["list", "number", "nested", "number-as-name", "sparse", "complex", "tensor"],
)
def test_what_is_no_dense_tensor_by_name_is_refused(tmp_path: Path, value: Any) -> None:
    saved(tmp_path / NAME, value)
    with pytest.raises(SourceInvalid):
        read(tmp_path)


def test_torchs_oldest_form_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / NAME, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(SourceUnreadable):
        read(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(SourceUnreadable, match="no plain file"):
        read(tmp_path)


@pytest.mark.parametrize("shard", ["../secret.bin", "/etc/passwd", ".hidden", "missing.bin", 7])
def test_an_index_names_files_beside_it_only(tmp_path: Path, shard: object) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    saved(tmp_path / "secret.bin")
    (folder / f"{NAME}.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises((SourceInvalid, SourceUnreadable)):
        read(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "\udcff", "[" * 10_000])
def test_json_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SourceUnreadable, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_json_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(SourceUnreadable, match="more than"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
def test_numbers_that_cannot_be_served_are_refused(tmp_path: Path, number: float) -> None:
    backbone = load_backbone(str(tiny_backbone_folder(tmp_path, "bert")))
    model = Published(tmp_path / "tiny-bert-0", TEXT, 3)
    with torch.no_grad():
        model.prefix_encoder.embedding.weight[1, 2] = number
    with pytest.raises(NotFinite, match=r"prefix\.kv"):
        import_prompt(model.save(tmp_path / "source"), backbone)


def test_a_folder_without_a_prompt_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match="is no folder"):
        detect(tmp_path / "nothing")
    with pytest.raises(UnknownFormat, match="of no format that is read here"):
        detect(tmp_path)
    saved(tmp_path / NAME)
    with pytest.raises(UnknownFormat, match="a model without prefix_encoder"):
        detect(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnknownFormat, match="neither PEFT's peft_type nor an adapter's config"):
        detect(tmp_path)


def test_a_folder_of_checkpoints_names_them(tmp_path: Path) -> None:
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        saved(tmp_path / f"checkpoint-{step}" / NAME)
    with pytest.raises(UnknownFormat, match="name one of checkpoint-1000, checkpoint-500"):
        detect(tmp_path)


def test_the_page_names_every_error() -> None:
    page = (Path(__file__).parent.parent / "docs" / "formats.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FormatError)]
    assert all(f"`{kind.__name__}`" in page for kind in kinds if kind is not FormatError)
