"""Everything that can go wrong in prefixbank, as one tree.

    PrefixbankError
      RequestError                 the caller can mend it
        InvalidRequest               the body is not what the route takes
        InputTooLong                 more tokens than the task takes, and the request forbids truncation
        Unauthorized                 no key, or a wrong one
        UnknownTask                  no such task, or not for this key: the two look alike on purpose
      CapacityError                the server cannot take it now
        Overloaded                   the queue is full: come back after `retry_after_s`
        DeadlineExceeded             the request waited longer than it allowed
        PromptTooLarge               a prompt that the pool could never hold
        ShuttingDown                 the engine takes no more requests
      StoreError                   an operation on the prompt store is refused
        InvalidName                  a tenant, task or alias name outside the grammar
        NoSuchTask / NoSuchAlias / NoSuchRevision
        RevisionInUse                an alias points at what was to be deleted
        NothingToRollBack            the alias has no earlier revision
        NoSuchStore                  there is no store at this path
        StoreCorrupt                 the folder is not a store, or not one this version reads
        SymlinkInStore               a folder below the store's root is a link, and may lead out of it
      ArtifactError                a published prompt is not what it claims (one class per lie)
        MissingFile, UnexpectedFile, SymlinkInArtifact, FileTooLarge
        UnsupportedSchema
        ManifestUnreadable
          DuplicateKey, NestedTooDeep
        ManifestInvalid
          LabelsMismatch, LayersMismatch, PoolerMismatch, PromptMismatch, SettingsMismatch, VerbalizerMismatch
        TensorFileUnreadable
          TensorLayoutInvalid          overlap, hole, or an extent that is not the shape's
        TensorFileTruncated, TensorFileOverlong, TensorMissing, TensorUnexpected
        WrongShape, WrongDtype, DigestMismatch
        NotFinite
          OverflowsHalf                finite as stored, infinite in fp16
      FormatError                  another tool's prompt cannot be taken in, or ours not be written for it
        UnknownFormat                the source is of no format that is read here
        SourceUnreadable             a file of it is missing, truncated, too large, or asks for code to be run
        SourceInvalid                its files contradict its format or each other
        NotRepresentable             its method, or ours, has no equal on the other side
      BackboneError                the frozen encoder and the prompt, or the code, do not fit
        UnsupportedBackbone          an architecture that does not route through the attention seam
        BackboneMismatch             a prompt made for another backbone
        UnsupportedFamily            a task family that this version does not serve or train
        NonFiniteLogits              the forward gave NaN or infinity
      StepFailed                   the engine failed on the batch of this request, and has logged why
      TrainingError                a training run cannot go on
        InvalidRecipe                a recipe field is wrong
        InvalidData                  a row of a data set is wrong: file and line are named
        TrainingInterrupted          Ctrl-C or SIGTERM: the checkpoint is written, the run can be resumed
        ServingMismatch              the served answers differ from the trained ones: not published
      InvalidReport                a report or a sweep's record is not one that a page can be drawn of
      InvalidConfig                a setting of the server is unknown, unreadable or out of range
      ServerNotStarted             the server did not come up

This module refuses to know HTTP: `serving` has the one table that turns a class into a status code.
Messages say what was found, what was wanted, and where.
"""


class PrefixbankError(Exception):
    """The root of every error this project raises on purpose."""


class RequestError(PrefixbankError):
    """The caller can mend this request."""


class InvalidRequest(RequestError):
    """The body or a parameter is not what the route takes."""


class InputTooLong(RequestError):
    """The input has more tokens than the task takes, and the request forbids truncation."""


class Unauthorized(RequestError):
    """The key is missing or wrong."""


class UnknownTask(RequestError):
    """No such task is visible to this caller."""


class CapacityError(PrefixbankError):
    """The server cannot take this now."""


class Overloaded(CapacityError):
    """The queue is full.

    Args:
        message: what was full, and how full.
        retry_after_s: seconds after which a retry has a fair chance.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(CapacityError):
    """The request waited longer than it allowed."""


class PromptTooLarge(CapacityError):
    """The prompt needs more pool memory than the pool has in all."""


class ShuttingDown(CapacityError):
    """The engine takes no more requests."""


class StoreError(PrefixbankError):
    """An operation on the prompt store is refused."""


class InvalidName(StoreError):
    """A tenant, task or alias name is outside the grammar."""


class NoSuchTask(StoreError):
    """Nothing was ever published under this tenant and task."""


class NoSuchAlias(StoreError):
    """The task has no such alias."""


class NoSuchRevision(StoreError):
    """The task has no such revision, or the prefix given names none or several."""


class RevisionInUse(StoreError):
    """An alias points at the revision."""


class NothingToRollBack(StoreError):
    """The alias has no earlier revision that still exists."""


class NoSuchStore(StoreError):
    """There is no store at this path."""


class StoreCorrupt(StoreError):
    """The folder is not a store, or one of another version."""


class SymlinkInStore(StoreError):
    """A folder or file below the store's root is a link, and may lead out of it."""


class ArtifactError(PrefixbankError):
    """A published prompt is not what it claims."""


class MissingFile(ArtifactError):
    """A file of the artifact is absent."""


class UnexpectedFile(ArtifactError):
    """The artifact's folder holds something that is no part of an artifact."""


class SymlinkInArtifact(ArtifactError):
    """A file of the artifact, or its folder, is a link."""


class FileTooLarge(ArtifactError):
    """A file is larger than any honest artifact of this shape."""


class ManifestUnreadable(ArtifactError):
    """The manifest is not UTF-8 JSON."""


class DuplicateKey(ManifestUnreadable):
    """A JSON object names a key twice, so two readers may see two values."""


class NestedTooDeep(ManifestUnreadable):
    """The JSON nests deeper than any honest manifest."""


class ManifestInvalid(ArtifactError):
    """The manifest breaks its schema, or its fields contradict each other."""


class LabelsMismatch(ManifestInvalid):
    """The labels are not unique, or not as many as the family takes."""


class LayersMismatch(ManifestInvalid):
    """The prompted layers are not ascending, not the backbone's, or do not agree with the prefix length."""


class PoolerMismatch(ManifestInvalid):
    """The head's pooler, its activation and the task family do not agree."""


class PromptMismatch(ManifestInvalid):
    """The prompt is deep and shallow at once."""


class SettingsMismatch(ManifestInvalid):
    """The preprocessing has settings of another task family."""


class VerbalizerMismatch(ManifestInvalid):
    """The template, words and tokens of a verbalizer do not agree with each other, the labels or the texts."""


class UnsupportedSchema(ArtifactError):
    """The manifest is of a schema version this code does not read."""


class TensorFileUnreadable(ArtifactError):
    """The tensor file's header is not a safetensors header."""


class TensorLayoutInvalid(TensorFileUnreadable):
    """The tensors' extents overlap, leave a hole, or do not hold their shapes."""


class TensorFileTruncated(ArtifactError):
    """The tensor file is shorter than its header or manifest promises."""


class TensorFileOverlong(ArtifactError):
    """The tensor file is longer than its header or manifest promises."""


class TensorMissing(ArtifactError):
    """A tensor that the manifest implies is absent."""


class TensorUnexpected(ArtifactError):
    """The tensor file holds a tensor that the manifest does not imply."""


class WrongShape(ArtifactError):
    """A tensor's shape is not the one the manifest implies."""


class WrongDtype(ArtifactError):
    """A tensor's dtype is not one an artifact may hold."""


class NotFinite(ArtifactError):
    """A tensor holds NaN or infinity."""


class OverflowsHalf(NotFinite):
    """A tensor holds a number that is infinite in half precision."""


class DigestMismatch(ArtifactError):
    """The bytes do not hash to what names them."""


class FormatError(PrefixbankError):
    """A prompt of another tool cannot be taken in, or one of ours not be written for it."""


class UnknownFormat(FormatError):
    """The source is of no format that is read here."""


class SourceUnreadable(FormatError):
    """A file of the source is missing, truncated, too large, or asks for code to be run."""


class SourceInvalid(FormatError):
    """The files of the source contradict its format or each other."""


class NotRepresentable(FormatError):
    """The method has no equal on the other side, so that its answers would be others."""


class BackboneError(PrefixbankError):
    """The frozen encoder and the prompt, or the code, do not fit."""


class UnsupportedBackbone(BackboneError):
    """The architecture does not route its attention through the seam."""


class BackboneMismatch(BackboneError):
    """The prompt was made for another backbone."""


class UnsupportedFamily(BackboneError):
    """A task family that this version does not serve or train."""


class NonFiniteLogits(BackboneError):
    """The forward gave NaN or infinity: no answer is better than a wrong one."""


class StepFailed(PrefixbankError):
    """The engine failed on the batch of this request; the next batch is not affected."""


class TrainingError(PrefixbankError):
    """A training run cannot go on."""


class InvalidRecipe(TrainingError):
    """A recipe field is unknown, missing or out of range."""


class InvalidData(TrainingError):
    """A row of a data set is wrong; the message names file and line."""


class TrainingInterrupted(TrainingError):
    """The run was asked to stop; its checkpoint is written."""


class ServingMismatch(TrainingError):
    """The served answers differ from the trained ones, so the prompt is not published."""


class InvalidReport(PrefixbankError):
    """The record of a run or of a sweep is unreadable, or lacks what a page shows."""


class InvalidConfig(PrefixbankError):
    """A setting of the server is unknown, unreadable or out of range."""


class ServerNotStarted(PrefixbankError):
    """The server did not come up; what it logged before says why."""
