"""Every error that this package raises on purpose.

The tree, one line a class:

    RagTunedMemoryError
    ├── InvalidInput (also ValueError)      what was given cannot be taken; nothing was stored
    │   ├── InvalidNamespace
    │   ├── InvalidTrajectory               empty, oversize, unknown step kind, invalid UTF-8 …
    │   ├── InvalidRecord                   one record of an imported file; carries path and line
    │   ├── InvalidVector                   NaN, infinity, wrong dimension
    │   └── InvalidRecipe                   a distillation recipe or policy that contradicts itself
    ├── NotFound (also LookupError)
    │   ├── TrajectoryNotFound
    │   └── AdapterNotFound
    ├── MissingExtra (also ImportError)     an optional dependency is not installed
    ├── StoreError
    │   ├── StoreCorrupt                    the database file is damaged or no database at all
    │   ├── StoreFull                       no space left on the device
    │   ├── StoreBusy                       another process held the write lock for too long
    │   ├── StoreTooNew                     written by a newer version of this package
    │   ├── StoreTooOld                     the server's version lacks what is needed
    │   ├── StoreUnavailable                the server cannot be reached, or did not answer in time
    │   └── EmbedderMismatch                vectors were made by another embedder
    ├── ModelError
    │   ├── ModelNotPulled                  the weights are not on this machine
    │   └── ModelIntegrityError             a download's checksum is wrong
    ├── DistilError
    │   ├── NotEnoughEpisodes               nothing can be learnt from what is stored
    │   ├── DistilBusy                      another process distils this namespace
    │   ├── TrainingDiverged                the loss became NaN or infinite
    │   └── TrainingStopped                 asked to stop; a checkpoint is kept
    ├── AdapterError
    │   ├── IllegalTransition               the state machine does not allow this step
    │   ├── AdapterNotServable              rejected or tainted adapters never serve
    │   ├── AdapterDamaged                  files differ from the manifest's checksums
    │   └── CanaryMismatch                  the loaded adapter does not answer as the trained one did
    └── BackendError
        ├── AdapterNotLoaded                a request names an adapter that the backend does not hold
        ├── PromptTooLong
        └── BackendUnavailable
            └── BackendOverloaded           it is there, and takes no more requests now
"""

from __future__ import annotations


class RagTunedMemoryError(Exception):
    """Base of all errors of this package.

    ``message`` says what is wrong, ``place`` where (a file and line, a step, a setting), ``remedy`` what to do.
    ``str()`` joins the three.
    """

    def __init__(self, message: str, *, place: str | None = None, remedy: str | None = None) -> None:
        self.message = message
        self.place = place
        self.remedy = remedy
        super().__init__(message)

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text.rstrip('.')}. {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.place, self.remedy), dict(self.__dict__))


def _rebuild(
    kind: type[RagTunedMemoryError], message: str, place: str | None, remedy: str | None
) -> RagTunedMemoryError:
    error = kind.__new__(kind)
    RagTunedMemoryError.__init__(error, message, place=place, remedy=remedy)
    return error


class InvalidInput(RagTunedMemoryError, ValueError):
    """What was given cannot be taken; nothing was stored."""


class InvalidNamespace(InvalidInput):
    """A namespace is empty, too long, or holds control characters."""


class InvalidTrajectory(InvalidInput):
    """A trajectory cannot be stored as it is."""


class InvalidRecord(InvalidInput):
    """One record of an imported file is bad. ``path`` and ``line`` (1-based) say which."""

    def __init__(self, message: str, *, path: str, line: int | None = None, remedy: str | None = None) -> None:
        self.path = path
        self.line = line
        super().__init__(message, place=path if line is None else f"{path}:{line}", remedy=remedy)


class InvalidVector(InvalidInput):
    """A vector holds NaN or infinity, or has the wrong dimension."""


class InvalidRecipe(InvalidInput):
    """A recipe or policy contradicts itself."""


class NotFound(RagTunedMemoryError, LookupError):
    """What was asked for is not there."""


class TrajectoryNotFound(NotFound):
    """No such trajectory in this namespace."""


class AdapterNotFound(NotFound):
    """No such adapter in this registry."""


class MissingExtra(RagTunedMemoryError, ImportError):
    """An optional dependency is not installed."""


class StoreError(RagTunedMemoryError):
    """The episode store failed."""


class StoreCorrupt(StoreError):
    """The database file is damaged, or is no database."""


class StoreFull(StoreError):
    """No space is left on the device; the write was rolled back."""


class StoreBusy(StoreError):
    """Another process held the write lock for longer than the time limit."""


class StoreTooNew(StoreError):
    """The file was written by a newer version of this package."""


class StoreTooOld(StoreError):
    """The server's version lacks what this package needs."""


class StoreUnavailable(StoreError):
    """The server cannot be reached, or did not answer within the deadline."""


class EmbedderMismatch(StoreError):
    """The stored vectors were made by another embedder."""


class ModelError(RagTunedMemoryError):
    """A model's weights cannot be used."""


class ModelNotPulled(ModelError):
    """The weights are not on this machine."""


class ModelIntegrityError(ModelError):
    """A downloaded file's checksum is not the expected one."""


class DistilError(RagTunedMemoryError):
    """A distillation run failed."""


class NotEnoughEpisodes(DistilError):
    """Nothing can be learnt from what is stored."""


class DistilBusy(DistilError):
    """Another process distils this namespace."""


class TrainingDiverged(DistilError):
    """The loss became NaN or infinite."""


class TrainingStopped(DistilError):
    """Distillation was asked to stop; what was trained is in a checkpoint, and the next run goes on from it."""


class AdapterError(RagTunedMemoryError):
    """An adapter cannot be used as asked."""


class IllegalTransition(AdapterError):
    """The adapter's state does not allow this step."""


class AdapterNotServable(AdapterError):
    """Rejected and tainted adapters never serve."""


class AdapterDamaged(AdapterError):
    """An adapter's files differ from its manifest's checksums."""


class CanaryMismatch(AdapterError):
    """A loaded adapter does not answer as it did when it was trained."""


class BackendError(RagTunedMemoryError):
    """The inference backend failed."""


class AdapterNotLoaded(BackendError):
    """A request names an adapter that the backend does not hold."""


class PromptTooLong(BackendError):
    """A prompt and its answer do not fit into the model's context."""


class BackendUnavailable(BackendError):
    """The backend cannot be reached, or was closed."""


class BackendOverloaded(BackendUnavailable):
    """The backend is there, and takes no more requests now: another replica, or a later try, may."""
