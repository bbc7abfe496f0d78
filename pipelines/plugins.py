"""Encoders and fusions of other packages, found by their entry points. Nothing is imported before it is used.

A package offers an encoder with an entry point of the group ``hyfuse.encoders``, a fusion with one of ``hyfuse.fusions``. The
entry point's name is what the user types; what it points to is the catalogue entry (``EncoderSpec``, ``FusionSpec``), which names
the class. ``docs/own-encoder.md`` and ``docs/own-fusion.md`` have a complete package each.

What is promised: a listing reads the metadata of packages and runs none of their code, so a broken plug-in breaks no command but
those that name it; built-in names cannot be taken; whatever a plug-in raises or returns that it should not ends as a
:class:`PluginError` that names the package. What a plug-in computes is known by the digest of its code, which is part of what
stores and heads are checked against.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipelines.errors import HyfuseError, PluginError

__all__ = [
    "ENCODERS",
    "FUSIONS",
    "Plugin",
    "blamed",
    "find_plugin",
    "fix_of",
    "load_entry",
    "plugin_code",
    "plugin_problems",
    "plugins",
]

ENCODERS = "hyfuse.encoders"
"""Group of entry points that point to an ``EncoderSpec``."""
FUSIONS = "hyfuse.fusions"
"""Group of entry points that point to a ``FusionSpec``."""

_NAME = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*")  # a word of the command line, and a folder's name
_CODE = (".py", ".so", ".pyd")


@dataclass(frozen=True)
class Plugin:
    """One entry point.

    Attributes:
        group: ``hyfuse.encoders`` or ``hyfuse.fusions``.
        name: what the user types.
        target: ``module:attribute`` of the catalogue entry.
        package: the distribution that offers it, as pip calls it.
        version: of that distribution.
    """

    group: str
    name: str
    target: str
    package: str
    version: str

    @property
    def kind(self) -> str:
        """``encoder`` or ``fusion``."""
        return self.group.split(".")[1].removesuffix("s")

    @property
    def made_by(self) -> str:
        """Package and version, as messages name them."""
        return f"{self.package} {self.version}"


@cache
def _offered(group: str, path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Every entry point of a group, whatever its name; ``path`` is where Python looks, so that a change of it is seen."""
    found: list[Plugin] = []
    for entry in importlib.metadata.entry_points(group=group):
        package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("an unnamed package", "")
        found.append(Plugin(group, entry.name, entry.value, package, version))
    return tuple(sorted(set(found), key=lambda plugin: (plugin.name, plugin.package)))


def _refusal(plugin: Plugin, offered: Collection[Plugin], reserved: Collection[str]) -> str:
    """Why an entry point cannot be used; empty if it can."""
    what = f"The package {plugin.made_by} offers the {plugin.kind} {plugin.name!r}"
    if plugin.name in reserved:
        return f"{what}, a name of hyfuse's own, which stands. Its author must choose another name for the entry point."
    if not _NAME.fullmatch(plugin.name) or plugin.name.startswith(("hf-", "hf.")):
        return (
            f"{what}. A name is made of lower-case letters, digits and single -, _ or . between them, and does not begin with hf-."
            " Its author must choose another name for the entry point."
        )
    others = sorted(other.made_by for other in offered if other.name == plugin.name and other != plugin)
    if others:
        return f"{what}, and so does {' and '.join(others)}. Uninstall all but one: `pip uninstall {plugin.package}`."
    return ""


def plugins(group: str, *, reserved: Collection[str]) -> list[Plugin]:
    """What other packages offer and can be used, by name; no code of theirs is run.

    Args:
        group: ``ENCODERS`` or ``FUSIONS``.
        reserved: names that hyfuse keeps for itself.
    """
    offered = _offered(group, tuple(sys.path))
    return [plugin for plugin in offered if not _refusal(plugin, offered, reserved)]


def plugin_problems(group: str, *, reserved: Collection[str]) -> list[str]:
    """A sentence for every entry point that cannot be used because of its name."""
    offered = _offered(group, tuple(sys.path))
    return [reason for plugin in offered if (reason := _refusal(plugin, offered, reserved))]


def find_plugin(group: str, name: str, *, reserved: Collection[str]) -> Plugin | None:
    """The entry point of a name; None if no package offers it, or the name is reserved.

    Raises:
        PluginError: it is offered and cannot be used, since two packages offer it or its name is malformed.
    """
    offered = _offered(group, tuple(sys.path))
    for plugin in offered:
        if plugin.name == name and name not in reserved:
            if reason := _refusal(plugin, offered, reserved):
                raise PluginError(reason)
            return plugin
    return None


def fix_of(plugin: Plugin) -> str:
    """The sentence that ends every complaint about a plug-in."""
    package = plugin.package
    return (
        f"Update it (`pip install --upgrade {package}`), tell its author, or uninstall it (`pip uninstall {package}`)."
    )


@contextmanager
def blamed(plugin: Plugin, doing: str) -> Iterator[None]:
    """Name the package if its code raises in this block.

    What hyfuse itself raises passes, and so does a lack of memory, which is nobody's mistake.

    Args:
        plugin: whose code runs.
        doing: what it does, as in "being imported".

    Raises:
        PluginError: anything else was raised.
    """
    try:
        yield
    except (HyfuseError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            raise
        said = (str(error).strip().splitlines() or [""])[0]
        raise PluginError(
            f"The {plugin.kind} {plugin.name!r} of the package {plugin.made_by} failed when {doing}:"
            f" {type(error).__name__}{': ' if said else ''}{said}. {fix_of(plugin)} `--debug` shows where."
        ) from error


def load_entry(plugin: Plugin, kind: type) -> object:
    """Import a plug-in's catalogue entry.

    Args:
        plugin: the entry point.
        kind: what it must point to.

    Raises:
        PluginError: it cannot be imported, or is something else, or has another name than its entry point.
    """
    module, _, attribute = plugin.target.partition(":")
    with blamed(plugin, "being imported"):
        entry: object = importlib.import_module(module.strip())
        for part in filter(None, attribute.split(" ")[0].split(".")):
            entry = getattr(entry, part)
    if not isinstance(entry, kind):
        raise PluginError(
            f"The entry point {plugin.name!r} of the package {plugin.made_by} points to {plugin.target}, which is"
            f" {'a class' if isinstance(entry, type) else f'of the type {type(entry).__name__}'}; expected an instance of"
            f" {kind.__name__} (docs/own-{plugin.kind}.md). {fix_of(plugin)}"
        )
    name = getattr(entry, "name", None)
    if name != plugin.name:
        raise PluginError(
            f"The package {plugin.made_by} offers the {plugin.kind} {plugin.name!r}, but {plugin.target} is named {name!r}; the two"
            f" must be the same. {fix_of(plugin)}"
        )
    return entry


def plugin_code(plugin: Plugin) -> str:
    """sha256 over the code of the top-level module or package that a plug-in points to; found, not imported.

    Raises:
        PluginError: there is no such module.
    """
    return _code(plugin, tuple(sys.path))


@cache
def _code(plugin: Plugin, path: tuple[str, ...]) -> str:
    top = plugin.target.partition(":")[0].strip().split(".")[0]
    with blamed(plugin, f"its module {top!r} was looked for"):
        found = importlib.util.find_spec(top)
    files: list[tuple[str, Path]] = []
    if found is not None and found.submodule_search_locations is not None:
        for folder in map(Path, found.submodule_search_locations):
            files += [(file.relative_to(folder).as_posix(), file) for file in folder.rglob("*") if file.suffix in _CODE]
    elif found is not None and found.origin is not None and Path(found.origin).is_file():
        files.append((Path(found.origin).name, Path(found.origin)))
    if not files:
        raise PluginError(
            f"The {plugin.kind} {plugin.name!r} of the package {plugin.made_by} points to {plugin.target}, but there is no module"
            f" {top!r}. {fix_of(plugin)}"
        )
    digest = hashlib.sha256()
    for name, file in sorted(files):
        digest.update(f"{name}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
