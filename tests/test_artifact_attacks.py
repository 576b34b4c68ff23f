"""Every way an artifact can lie, built and refused by name.

Each lie is told by an attacker who repairs what would give it away: the manifest's hash and size of the tensor
file agree with the forged bytes unless they are the lie.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.model_store import artifact, errors
from tests.prompt_cases import Forger, forge, refused

if TYPE_CHECKING:
    from collections.abc import Callable

KV, WEIGHT, BIAS = "prefix.kv", "head.weight", "head.bias"
POOLER_WEIGHT, POOLER_BIAS = "head.pooler.weight", "head.pooler.bias"


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    return forge(tmp_path / "artifact")


# the folder


@pytest.mark.parametrize("name", ["manifest.json", "prompt.safetensors"])
def test_a_missing_file(forger: Forger, name: str) -> None:
    (forger.folder / name).unlink()
    refused(forger.folder, errors.MissingFile, name)


def test_a_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", errors.MissingFile)


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    refused(tmp_path / "file", errors.MissingFile, "not a folder")


@pytest.mark.parametrize("name", ["pytorch_model.bin", ".hidden", "manifest.json.bak"])
def test_an_extra_file(forger: Forger, name: str) -> None:
    (forger.folder / name).write_text("")
    refused(forger.folder, errors.UnexpectedFile, name)


def test_a_renamed_tensor_file(forger: Forger) -> None:
    forger.tensor_path.rename(forger.folder / "model.safetensors")
    refused(forger.folder, errors.MissingFile, "prompt.safetensors")


@pytest.mark.parametrize("name", ["manifest.json", "prompt.safetensors"])
def test_a_symlinked_file(forger: Forger, tmp_path: Path, name: str) -> None:
    (forger.folder / name).rename(tmp_path / name)
    (forger.folder / name).symlink_to(tmp_path / name)
    refused(forger.folder, errors.SymlinkInArtifact, name)


def test_a_symlinked_folder(forger: Forger, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(forger.folder)
    refused(tmp_path / "alias", errors.SymlinkInArtifact)


@pytest.mark.parametrize("name", ["manifest.json", "prompt.safetensors"])
def test_a_fifo_does_not_hang_the_reader(forger: Forger, name: str) -> None:
    (forger.folder / name).unlink()
    os.mkfifo(forger.folder / name)
    refused(forger.folder, errors.UnexpectedFile, "not a regular file")


def test_a_folder_in_a_files_place(forger: Forger) -> None:
    forger.tensor_path.unlink()
    forger.tensor_path.mkdir()
    refused(forger.folder, errors.UnexpectedFile, "not a regular file")


def test_a_manifest_too_large_is_not_read(forger: Forger) -> None:
    os.truncate(forger.manifest_path, 5 << 20)
    refused(forger.folder, errors.FileTooLarge, "manifest")


def test_a_tensor_file_larger_than_any_is_not_read(forger: Forger) -> None:
    os.truncate(forger.tensor_path, 1 << 40)
    refused(forger.folder, errors.FileTooLarge)


def test_a_tensor_file_larger_than_its_shapes_is_not_read(forger: Forger) -> None:
    """The manifest agrees with the size; no honest file of these shapes has it."""
    os.truncate(forger.tensor_path, 1 << 30)
    forger.edit_manifest(lambda fields: fields["tensor_file"].update(num_bytes=1 << 30))
    refused(forger.folder, errors.FileTooLarge, "of these shapes")


# the manifest as text


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"manifest"',
        b"\xff\xfe{}",
        b"{} {}",
        b'{"a": 01}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_manifest_that_is_not_a_json_object(forger: Forger, raw: bytes) -> None:
    forger.manifest_path.write_bytes(raw)
    refused(forger.folder, errors.ManifestUnreadable)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none(forger: Forger, number: str) -> None:
    text = forger.manifest_path.read_text()
    forger.manifest_path.write_text(text.replace("0.875", number))
    refused(forger.folder, errors.ManifestUnreadable)


def test_a_key_named_twice(forger: Forger) -> None:
    text = forger.manifest_path.read_text()
    forger.manifest_path.write_text(text.replace('"family"', '"labels": ["yes", "no"], "family"'))
    refused(forger.folder, errors.DuplicateKey, "labels")


@pytest.mark.parametrize("depth", [40, 500, 500_000])
def test_json_nested_too_deep(forger: Forger, depth: int) -> None:
    text = forger.manifest_path.read_text()
    forger.manifest_path.write_text(text.replace("0.005", "[" * depth + "]" * depth))
    refused(forger.folder, errors.NestedTooDeep)


def test_text_that_utf8_cannot_say(forger: Forger) -> None:
    text = forger.manifest_path.read_text()
    forger.manifest_path.write_text(text.replace('"yes"', r'"\ud800"'))
    refused(forger.folder, errors.ManifestUnreadable, "surrogate")


# the manifest as a record


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            fields = fields[parent]
        fields[last] = value

    return change


@pytest.mark.parametrize("version", [0, 2, 999])
def test_another_schema_version(forger: Forger, version: int) -> None:
    forger.edit_manifest(lambda fields: fields.update(schema_version=version, strange="field"))
    refused(forger.folder, errors.UnsupportedSchema, str(version))


@pytest.mark.parametrize("version", ["1", 1.0, True, None, [1]])
def test_a_schema_version_that_is_no_integer(forger: Forger, version: object) -> None:
    forger.edit_manifest(_set("schema_version", version))
    refused(forger.folder, errors.ManifestInvalid, "schema_version")


@pytest.mark.parametrize(
    "path",
    ["code", "head/code", "preprocessing/template", "backbone/url", "provenance/user", "tensor_file/path"],
)
def test_an_unknown_key(forger: Forger, path: str) -> None:
    forger.edit_manifest(_set(path, "x"))
    refused(forger.folder, errors.ManifestInvalid, path.replace("/", "."))


@pytest.mark.parametrize("name", sorted(artifact.Manifest.model_fields.keys() - {"shallow_length"}))
def test_an_absent_key(forger: Forger, name: str) -> None:
    forger.edit_manifest(lambda fields: fields.pop(name))
    refused(forger.folder, errors.ManifestInvalid, name)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("family", "text-generation"),
        ("labels", []),
        ("labels", "noyes"),
        ("labels", ["no", ""]),
        ("labels", ["no", 1]),
        ("labels", ["no", "y" * 1001]),
        ("layers", [0, 1, -3]),
        ("layers", ["0", "1", "3"]),
        ("prefix_length", -1),
        ("prefix_length", 5.0),
        ("prefix_length", 1 << 40),
        ("position_offset", -1),
        ("position_offset", True),
        ("position_offset", 1 << 40),
        ("metrics", {"accuracy": "0.9"}),
        ("metrics", {"accuracy": True}),
        ("metrics", []),
        ("shallow_length", -1),
        ("shallow_length", 1 << 40),
        ("head/pooler", "mean"),
        ("head/activation", "relu"),
        ("head/lm_digest", "cd" * 31),
        ("head/pools", "passage"),
        ("preprocessing/max_tokens", 0),
        ("preprocessing/truncation_side", "middle"),
        ("backbone/fingerprint", "ab" * 31),
        ("backbone/fingerprint", "AB" * 32),
        ("backbone/fingerprint", "ab" * 32 + "\n"),
        ("backbone/num_layers", 0),
        ("backbone/num_layers", 1 << 30),
        ("backbone/width", 1 << 30),
        ("tensor_file/num_bytes", 0),
        ("tensor_file/num_bytes", 1 << 50),
        ("tensor_file/sha256", "../../etc/passwd"),
        ("tensors/prefix.kv/dtype", "F64"),
        ("tensors/prefix.kv/dtype", "I64"),
        ("tensors/prefix.kv/shape", [3, 2, 2, 0, 4]),
    ],
)
def test_a_field_outside_its_range(forger: Forger, path: str, value: object) -> None:
    forger.edit_manifest(_set(path, value))
    refused(forger.folder, errors.ManifestInvalid, path.split("/")[0])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("prefix_length", 4),
        ("backbone/num_heads", 1),
        ("backbone/head_dim", 8),
        ("backbone/width", 16),
        ("labels", ["a", "b", "c"]),
        ("layers", [0, 1]),
        ("tensors/head.weight/shape", [8, 2]),
        ("tensors/head.weight/dtype", "F16"),
        ("tensors/head.extra", {"dtype": "F32", "shape": [1]}),
        ("tensor_file/num_bytes", 100),
    ],
)
def test_fields_that_contradict_the_tensor_table(forger: Forger, path: str, value: object) -> None:
    forger.edit_manifest(_set(path, value))
    refused(forger.folder, errors.ManifestInvalid, "tensor")


def test_a_table_without_a_tensor(forger: Forger) -> None:
    forger.edit_manifest(lambda fields: fields["tensors"].pop(KV))
    refused(forger.folder, errors.ManifestInvalid, KV)


def test_labels_that_are_not_unique(forger: Forger) -> None:
    forger.edit_manifest(_set("labels", ["yes", "yes"]))
    refused(forger.folder, errors.LabelsMismatch, "yes")


@pytest.mark.parametrize(("family", "wanted"), [("question-answering", 2), ("multiple-choice", 1)])
def test_labels_that_the_family_does_not_take(forger: Forger, family: str, wanted: int) -> None:
    forger.edit_manifest(lambda fields: fields.update(family=family, labels=["a", "b", "c"]))
    refused(forger.folder, errors.LabelsMismatch, f"takes {wanted} labels")


@pytest.mark.parametrize(
    ("layers", "length"),
    [([0, 1, 1], 5), ([1, 0, 3], 5), ([0, 1, 4], 5), ([0, 1, 1_000_000], 5), ([], 5), ([0, 1, 3], 0)],
)
def test_layers_that_cannot_be(forger: Forger, layers: list[int], length: int) -> None:
    forger.edit_manifest(lambda fields: fields.update(layers=layers, prefix_length=length))
    refused(forger.folder, errors.LayersMismatch)


@pytest.mark.parametrize(
    ("family", "pooler", "activation"),
    [
        ("text-classification", "own", None),
        ("text-classification", "none", "tanh"),
        ("text-classification", "backbone", "gelu"),
        ("token-classification", "own", "tanh"),
        ("token-classification", "backbone", None),
        ("question-answering", "backbone", None),
    ],
)
def test_a_pooler_that_does_not_agree(forger: Forger, family: str, pooler: str, activation: str | None) -> None:
    forger.edit_manifest(lambda fields: fields.update(family=family, head={"pooler": pooler, "activation": activation}))
    refused(forger.folder, errors.PoolerMismatch)


def test_every_artifact_error_has_a_lie_here() -> None:
    """A class that nothing raises is a promise that nothing keeps."""
    told = "".join(path.read_text() for path in Path(__file__).parent.glob("test_artifact*.py"))
    classes = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    kinds = {name for name in classes if issubclass(getattr(errors, name), errors.ArtifactError)} - {"ArtifactError"}
    assert {name for name in kinds if f"errors.{name}" not in told} == set()


def test_a_manifest_of_many_values_is_read_in_good_time(forger: Forger) -> None:
    """A stranger's recipe of 300,000 lists must not hold up the loading of other prompts for long."""
    text = forger.manifest_path.read_text()
    forger.manifest_path.write_text(text.replace("0.005", "[" + ",".join(["[]"] * 300_000) + "]"))
    begin = time.perf_counter()
    artifact.read_manifest(forger.folder)
    assert time.perf_counter() - begin < 5
