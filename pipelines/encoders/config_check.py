"""Does a checkpoint's ``config.json`` describe the network that the catalogue entry names?

Used by the encoders that are our own networks under a checkpoint's parameter names. Shapes of parameters tell most networks
apart, but not all that matters shows in them: a window of attention, a way of padding, an activation, a sample rate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipelines.encoders.catalogue import EncoderSpec
from pipelines.errors import WeightsError

__all__ = ["check_config"]


def check_config(spec: EncoderSpec, path: Path, expected: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """Compare a JSON file with what is expected of it.

    Args:
        spec: the catalogue entry, for the message.
        path: the file.
        expected: every setting that must have a certain value; ``a.b`` is ``b`` inside ``a``. Other settings are not looked at.
        defaults: what a setting means that the file leaves out.

    Raises:
        WeightsError: the file is not JSON, or a setting differs; the message names the first ones.
    """
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}). It belongs to the weights of {spec.name!r} and should be JSON; the file is"
            f" damaged or half-downloaded. Delete it and get it again from {spec.repository}."
        ) from error
    wrong = []
    for name, value in expected.items():
        found = _setting(config, name, defaults.get(name))
        if found != value:
            wrong.append(f"{name} is {found!r}, expected {value!r}")
    if wrong:
        shown = "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        revision = f" at revision {spec.revision}" if spec.revision else ""
        raise WeightsError(
            f"{path} is of another model than {spec.name!r} ({spec.title}): {shown}. Put the files of {spec.repository}{revision}"
            " there, or choose the model that fits with `hyfuse models list`."
        )


def _setting(config: Mapping[str, object], name: str, default: object) -> object:
    value: object = config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value
