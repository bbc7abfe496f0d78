"""Does a state dict fit the network, and what is recorded about it?

Used by the encoders whose weights are one or two plain files. Keys, shapes and finiteness are all checked before anything is
copied into a network: a partly fitting checkpoint would give silently random features (transformers#26796 tells such a story).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.weights import WeightsInfo, state_digest
from pipelines.errors import WeightsError

__all__ = ["check_state", "checkpoint_info", "pretrained_info", "random_info"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_state(
    state: Mapping[str, object], expected: Mapping[str, Tensor], *, path: Path, spec: EncoderSpec
) -> dict[str, Tensor]:
    """Check that a state dict holds exactly the expected parameters.

    Args:
        state: what was read from ``path``.
        expected: name to a tensor of the right shape, as ``Module.state_dict()`` gives it.
        path: the file, for the message.
        spec: the catalogue entry, for the message.

    Returns:
        The same entries, in the order of ``expected``.

    Raises:
        WeightsError: a parameter is missing, unexpected, of another shape, or not finite; the message gives each kind.
    """
    found: dict[str, Tensor] = {}
    shapes: list[str] = []
    broken: list[str] = []
    for name, like in expected.items():
        tensor = state.get(name)
        if not isinstance(tensor, Tensor):
            continue
        found[name] = tensor
        if tensor.shape != like.shape:
            shapes.append(f"{name} is {list(tensor.shape)}, expected {list(like.shape)}")
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            broken.append(name)
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in state if name not in expected]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(expected)} parameters are missing ({_some(missing)})")
    if unexpected:
        faults.append(f"{len(unexpected)} are not known ({_some(unexpected)})")
    if shapes:
        faults.append(f"{len(shapes)} have another shape ({_some(shapes)})")
    if broken:
        faults.append(f"{len(broken)} hold values that are not finite ({_some(broken)})")
    if faults:
        source = next((file.url for file in spec.files if file.url), "") or spec.repository or "its source"
        raise WeightsError(
            f"{path} does not fit {spec.name!r}: {'; '.join(faults)}. Expected the checkpoint of {spec.title}. The file is of"
            f" another model, of another size, or damaged. Delete it and get it again from {source}."
        )
    return found


def pretrained_info(spec: EncoderSpec, paths: Sequence[Path], state: Mapping[str, Tensor]) -> WeightsInfo:
    """Provenance of weights read from ``paths``, the files of ``spec.files`` in that order.

    A file whose sha256 the catalogue knows has been checked by ``find_file``; only then is a revision claimed.
    """
    checked = bool(spec.files) and all(file.sha256 for file in spec.files)
    if checked:
        revision = spec.revision or f"sha256:{spec.files[0].sha256[:16]}"
        source = f"{spec.repository}: {', '.join(file.name for file in spec.files)}"
    else:
        revision = "unverified"
        source = ", ".join(str(path) for path in paths)
    return WeightsInfo(
        kind="pretrained", source=source, revision=revision, digest=state_digest(state), licence=spec.licence
    )


def checkpoint_info(spec: EncoderSpec, place: Path, revision: str, state: Mapping[str, Tensor]) -> WeightsInfo:
    """Provenance of a checkpoint that ``find_checkpoint`` has found.

    Args:
        spec: the catalogue entry.
        place: the folder or file that was read; the source, where no revision vouches for it.
        revision: as ``find_checkpoint`` gives it.
        state: the parameters as read.
    """
    return WeightsInfo(
        kind="pretrained",
        source=str(place) if revision == "unverified" else spec.repository,
        revision=revision,
        digest=state_digest(state),
        licence=spec.licence,
    )


def random_info(spec: EncoderSpec, state: Mapping[str, Tensor]) -> WeightsInfo:
    """Provenance of random weights, built inside ``random_initialisation(spec)``."""
    return WeightsInfo(
        kind="random",
        source=f"random, seeded by the name {spec.name!r}",
        revision="",
        digest=state_digest(state),
        licence="none: random weights",
    )
