"""An encoder of another package, watched: what it returns is looked at before it is believed.

A wrong shape could otherwise pass unseen (one column is spread over D of them) or end as an error that names the wrong culprit.
What is looked at costs nothing beside a network: names, shapes, types, numbers of frames. Whether values are finite is looked at
after pooling, as for every encoder; whether batches matter, by ``hyfuse models check``.

The digest of its weights, which stores are checked against, is taken together with that of its code: other code, other store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.weights import WeightsInfo
from pipelines.errors import PluginError
from pipelines.plugins import Plugin, blamed, fix_of, plugin_code

__all__ = ["PluggedEncoder"]


class PluggedEncoder(Encoder):
    """A plug-in's encoder with the interface of any other.

    Args:
        inner: what its ``build`` returned.
        plugin: the entry point it came from.

    Attributes:
        inner: the encoder itself.
        plugin: the entry point it came from.

    Raises:
        PluginError: that is no encoder, or it does not say what it must.
    """

    def __init__(self, inner: object, plugin: Plugin) -> None:
        self.plugin = plugin
        if not isinstance(inner, Encoder):
            raise self._mistake(
                f"`build` returned {_type_name(inner)}; expected an instance of pipelines.encoders.base.Encoder"
            )
        if not isinstance(getattr(inner, "weights", None), WeightsInfo):
            raise self._mistake(
                "`build` returned an encoder without `weights`; its __init__ must call the base class's"
            )
        if inner.spec.name != plugin.name:
            raise self._mistake(f"`build` returned an encoder of the entry {inner.spec.name!r}")
        code = f"{inner.weights.digest} {plugin_code(plugin)}"
        super().__init__(
            spec=inner.spec,
            weights=replace(inner.weights, digest=hashlib.sha256(code.encode()).hexdigest()),
            device=inner.device,
            precision=inner.precision,
        )
        self.inner = inner
        self.min_samples, self.longest_s, self.context_s = inner.min_samples, inner.longest_s, inner.context_s

    def __getattr__(self, name: str) -> Any:
        """What else it has, such as ``tokenize`` of an encoder of texts."""
        if name == "inner":  # not there yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def num_frames(self, num_samples: int) -> int:
        """Number of frames T, as the plug-in says."""
        with blamed(self.plugin, f"counting the frames of {num_samples} samples"):
            frames = self.inner.num_frames(num_samples)
        if not isinstance(frames, int) or frames < 1:
            raise self._mistake(f"`num_frames({num_samples})` returned {frames!r}; expected a whole number, at least 1")
        return frames

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield every representation after a look at it; see the base class."""
        expected = [self.num_frames(clip.shape[0]) for clip in batch]
        longest = max((clip.shape[0] for clip in batch), default=0)
        doing = f"encoding {len(batch)} clips of up to {longest} samples"
        with blamed(self.plugin, doing):
            representations = iter(self.inner.encode_padded(batch))
        for name in self.spec.representations:
            with blamed(self.plugin, doing):
                found = next(representations, None)
            yield self._looked_at(found, name, expected)
        if next(representations, None) is not None:
            raise self._mistake(
                f"`encode_padded` yielded more than the {len(self.spec.representations)} representations of its catalogue entry"
            )

    def _looked_at(self, found: object, name: str, expected: Sequence[int]) -> PaddedRepresentation:
        """One representation, if it is what was promised."""
        if found is None:
            raise self._mistake(f"`encode_padded` ended before it yielded the representation {name!r}")
        if not isinstance(found, PaddedRepresentation):
            raise self._mistake(f"`encode_padded` yielded {_type_name(found)}; expected a PaddedRepresentation")
        if found.name != name:
            raise self._mistake(f"`encode_padded` yielded {found.name!r} where the catalogue entry names {name!r}")
        frames, counts = found.frames, found.num_frames
        size, dim = len(expected), self.spec.dim
        if not isinstance(frames, Tensor) or frames.ndim != 3 or frames.shape[0] != size or frames.shape[2] != dim:
            shape = list(frames.shape) if isinstance(frames, Tensor) else _type_name(frames)
            raise self._mistake(f"the frames of {name!r} are {shape}; expected [B, T, D] = [{size}, T, {dim}]")
        if frames.dtype != torch.float32:
            raise self._mistake(f"the frames of {name!r} are {frames.dtype}; expected torch.float32")
        if not isinstance(counts, Tensor) or counts.shape != (size,) or counts.dtype != torch.int64:
            what = f"{counts.dtype} {list(counts.shape)}" if isinstance(counts, Tensor) else _type_name(counts)
            raise self._mistake(f"`num_frames` of {name!r} is {what}; expected torch.int64 [{size}]")
        if (told := counts.tolist()) != list(expected):
            row = next(row for row, (one, other) in enumerate(zip(told, expected, strict=True)) if one != other)
            raise self._mistake(
                f"clip {row} of a batch of {size} came as {told[row]} frames of {name!r}, but `num_frames` of the encoder says"
                f" {expected[row]}"
            )
        if max(expected) > frames.shape[1]:
            raise self._mistake(f"{name!r} has {frames.shape[1]} frames for clips of up to {max(expected)}")
        return found

    def _mistake(self, what: str) -> PluginError:
        plugin = self.plugin
        return PluginError(
            f"The encoder {plugin.name!r} of the package {plugin.made_by} breaks its contract: {what}. Its author finds all such"
            f" mistakes with `hyfuse models check {plugin.name}`. {fix_of(plugin)}"
        )


def _type_name(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
