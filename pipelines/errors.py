"""The mistakes hyfuse knows, one named type per kind.

Every message says what was wrong (with the value), what was expected, the likely cause, and the command that fixes it.
The command line shows the message as one short paragraph and exits with status 2. Each type also inherits the builtin
that a Python caller would expect, so ``except FileNotFoundError`` works as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AudioError",
    "CardError",
    "ConfigError",
    "DataRootError",
    "DeviceError",
    "DownloadError",
    "FailuresError",
    "HubError",
    "HyfuseError",
    "InstallationError",
    "ManifestError",
    "ModelError",
    "PluginError",
    "ProtocolError",
    "ProvenanceError",
    "RunError",
    "StorageError",
    "StoreError",
    "UnknownNameError",
    "UtteranceError",
    "WeightsError",
    "WorkerError",
    "unknown_name",
]


class HyfuseError(Exception):
    """Base of every mistake that hyfuse explains; the message is written for the user."""


class UnknownNameError(HyfuseError, LookupError):
    """A model, corpus, fusion, protocol, representation or condition that does not exist."""


class ConfigError(HyfuseError, ValueError):
    """An option value, or a combination of options, that makes no sense."""


class CardError(HyfuseError, ValueError):
    """A corpus card (``data_manifests/*.toml``) that breaks its schema."""


class ManifestError(HyfuseError, ValueError):
    """A manifest that breaks its contract: missing columns, duplicate ids, unusable values."""


class DataRootError(HyfuseError, FileNotFoundError):
    """The corpus root is missing, unreadable, or holds something else than the corpus named."""


class ProtocolError(HyfuseError, ValueError):
    """Folds that cannot be made: too few speakers, a class missing from a training part, leaking speakers."""


class AudioError(HyfuseError, ValueError):
    """A recording that cannot be used: unreadable, empty, silent, an LFS pointer, not finite."""


class WeightsError(HyfuseError, FileNotFoundError):
    """Weights that are absent, damaged, or do not fit the architecture."""


class InstallationError(HyfuseError, ImportError):
    """A package that is installed and cannot be imported."""


class PluginError(HyfuseError, RuntimeError):
    """An encoder or a fusion of another package that raises, or returns what it should not."""


class DeviceError(HyfuseError, RuntimeError):
    """A device that was asked for and is not there."""


class FailuresError(HyfuseError, RuntimeError):
    """More recordings of a corpus could not be used than were allowed to fail."""


class WorkerError(HyfuseError, RuntimeError):
    """A worker process that died."""


class StoreError(HyfuseError, ValueError):
    """A store that is absent, unfinished, damaged or of another schema."""


class ProvenanceError(StoreError):
    """A store that was made from something else than what is asked for."""


class UtteranceError(StoreError):
    """Utterances that are asked for and not in the store, or failed there."""


class RunError(HyfuseError, ValueError):
    """A run folder that is absent, unfinished, damaged or of another version."""


class ModelError(HyfuseError, ValueError):
    """An exported model that is absent, damaged, edited by hand or of another version."""


class DownloadError(HyfuseError, ConnectionError):
    """A corpus that cannot be downloaded: no network, no such release, a file that arrives damaged."""


class HubError(HyfuseError, ConnectionError):
    """The Hugging Face Hub: it cannot be reached, or refuses."""


class StorageError(HyfuseError, OSError):
    """The disk: full, read-only, no permission, or an interrupted write."""


def unknown_name(kind: str, value: str, valid: Iterable[str], *, hint: str = "") -> UnknownNameError:
    """Build the error for a name that is not known, nearest valid names first.

    Args:
        kind: what was looked up, as the user calls it ("model", "corpus", "fusion", …).
        value: the name that was given.
        valid: the names that exist.
        hint: a closing sentence, for instance the command that lists all names.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(value.lower(), names, n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    listed = ", ".join(names) if names else "none"
    message = f"Unknown {kind} {value!r}. {meant}Valid names: {listed}."
    return UnknownNameError(f"{message} {hint}".rstrip())
