"""Is everything in order on this machine? One check per thing that has gone wrong for someone, each with its fix.

Nothing is changed, nothing is downloaded; one request goes to the Hub (none with ``HF_HUB_OFFLINE``). A check that itself fails is
an error of that check, never of the whole.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pipelines
from pipelines.errors import HyfuseError
from pipelines.locations import Location, ObjectPath

__all__ = ["Check", "diagnose"]

_LITTLE_SPACE_GB = 5.0
_HUB_PATIENCE_S = 5.0

_OPTIONAL = {
    "ray": ("ray", "extraction on a cluster"),
    "remote": ("obstore", "caches on object storage"),
    "tune": ("optuna", "`hyfuse tune`"),
    "corpora": ("audb", "`hyfuse corpora fetch`"),
    "demo": ("gradio", "`hyfuse demo`"),
    "egemaps": ("opensmile", "the descriptors eGeMAPS"),
}
"""Extra to its distribution and what it is for."""


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: what was looked at.
        status: ``ok``, ``note`` (nothing wrong, worth knowing), ``warning`` or ``error``.
        found: what is there.
        fix: what to do; empty where nothing needs to be done.
    """

    name: str
    status: str
    found: str
    fix: str = ""


def diagnose(cache_dir: Location, runs_dir: Path) -> Iterator[Check]:
    """Check Python, libraries, devices, the Hub, disks, caches and corpora, one after the other.

    Args:
        cache_dir: folder of manifests and stores.
        runs_dir: folder of runs.
    """
    yield _python()
    yield from _guarded("packages", _packages)
    yield from _guarded("torch", _torch)
    yield from _guarded("audio", _audio)
    yield from _guarded("extras", _extras)
    yield from _guarded("Hub", _hub)
    yield from _guarded("weights", _weights)
    yield from _guarded("disk", lambda: _disk(cache_dir, runs_dir))
    yield from _guarded("cache", lambda: _cache(cache_dir))


def _guarded(name: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from check()
    except (HyfuseError, OSError, ImportError, RuntimeError, ValueError) as error:
        yield Check(name, "error", f"could not be checked: {error}", "Please report this with the message.")


def _python() -> Check:
    found = f"{platform.python_version()} ({sys.executable}), hyfuse {pipelines.__version__}, {platform.platform()}"
    cores = os.cpu_count()
    return Check("Python", "ok", f"{found}, {cores} cores")


def _packages() -> Iterator[Check]:
    """Every dependency, in a version that pyproject.toml allows."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in requires("hyfuse") or ()]
    except PackageNotFoundError:
        yield Check(
            "packages", "warning", "hyfuse is not installed as a package", "Run `make setup`, or `pip install -e .`."
        )
        return
    wrong = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (needed: {requirement.specifier})")
    if wrong:
        yield Check(
            "packages", "error", "; ".join(wrong), "Install the tested set: `pip install -c constraints.txt -e .`."
        )
        return
    named = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "speechbrain", "encodec", "zarr"))
    yield Check("packages", "ok", named)


def _torch() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        listed = ", ".join(f"{one.name} ({one.total_memory / 2**30:.0f} GiB)" for one in devices)
        yield Check("GPU", "ok", f"{listed}, CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        yield Check(
            "GPU",
            "error",
            f"nvidia-smi is there, but torch {torch.__version__} (built for {built}) sees no GPU",
            "Install a CUDA build of torch that your driver supports (https://pytorch.org/get-started/locally), then run"
            " `hyfuse doctor` again.",
        )
    else:
        yield Check("GPU", "note", "none; everything runs on the CPU, large encoders slowly")
    yield Check("threads", "ok", f"torch uses {torch.get_num_threads()} of {os.cpu_count()} cores")


def _audio() -> Iterator[Check]:
    import soundfile

    formats = soundfile.available_formats()
    missing = [name for name in ("WAV", "FLAC", "OGG", "MP3") if name not in formats]
    library = f"soundfile {soundfile.__version__} ({soundfile.__libsndfile_version__})"
    if missing:
        yield Check(
            "audio", "warning", f"{library} cannot read {', '.join(missing)}", "Upgrade it: `pip install -U soundfile`."
        )
    else:
        yield Check("audio", "ok", f"{library}, soxr {version('soxr')}")
    if shutil.which("ffmpeg") is None:
        yield Check(
            "ffmpeg",
            "note",
            "not found; only corpora of videos (MELD) need it",
            "Install it with your system's packages, for instance `apt install ffmpeg`.",
        )


def _extras() -> Iterator[Check]:
    there, absent = [], []
    for extra, (distribution, purpose) in _OPTIONAL.items():
        try:
            there.append(f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            absent.append(f"{extra} ({purpose})")
    if there:
        yield Check("extras", "ok", ", ".join(there))
    if absent:
        first = absent[0].split()[0]
        yield Check(
            "extras", "note", f"not installed: {', '.join(absent)}", f"For instance `pip install 'hyfuse[{first}]'`."
        )


def _hub() -> Iterator[Check]:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
    fix = (
        "Weights that are not here cannot be downloaded: put them into $HYFUSE_WEIGHTS (`hyfuse models show NAME` names the"
        " files), or try things with --weights random."
    )
    if offline:
        yield Check("Hub", "note", "HF_HUB_OFFLINE is set: nothing is downloaded", fix)
        return
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if not address.startswith(("https://", "http://")):
        yield Check("Hub", "error", f"HF_ENDPOINT is {address!r}, not an address", "Unset it: `unset HF_ENDPOINT`.")
        return
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=_HUB_PATIENCE_S):
            yield Check("Hub", "ok", f"{address} answers")
    except urllib.error.HTTPError as error:  # it answers, if not with a page
        yield Check("Hub", "ok", f"{address} answers ({error.code})")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield Check("Hub", "warning", f"{address} does not answer: {reason}", fix)


def _weights() -> Iterator[Check]:
    folder = os.environ.get("HYFUSE_WEIGHTS", "")
    if folder and not Path(folder).is_dir():
        yield Check("weights", "error", f"$HYFUSE_WEIGHTS is {folder}, which is no folder", "Correct it, or unset it.")
    elif folder:
        inside = sorted(path.name for path in Path(folder).iterdir() if not path.name.startswith("."))
        few = f"{', '.join(inside[:6])}{', …' if len(inside) > 6 else ''}" if inside else "nothing"
        yield Check("weights", "ok", f"$HYFUSE_WEIGHTS is {folder} and holds {few}")
    else:
        yield Check(
            "weights", "note", "$HYFUSE_WEIGHTS is not set; weights come from the cache of the Hub or are downloaded"
        )


def _disk(cache_dir: Location, runs_dir: Path) -> Iterator[Check]:
    hub = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    places = {"runs": runs_dir, "weights of the Hub": hub}
    if isinstance(cache_dir, Path):
        places = {"cache": cache_dir, **places}
    for purpose, place in places.items():
        there = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free / 1e9
        where = f"{place} ({purpose}): {free:.0f} GB free"
        if not os.access(there, os.W_OK):
            yield Check(
                "disk", "error", f"{place} ({purpose}) cannot be written", "Choose another folder, or mend its rights."
            )
        elif free < _LITTLE_SPACE_GB:
            yield Check("disk", "warning", where, "Make room: `hyfuse cache list` tells the size of every store.")
        else:
            yield Check("disk", "ok", where)


def _cache(cache_dir: Location) -> Iterator[Check]:
    from pipelines.corpora.prepare import recall
    from pipelines.guidance.next_steps import look

    state = look(cache_dir, Path(os.devnull))
    if isinstance(cache_dir, ObjectPath):
        yield Check("cache", "ok", f"{cache_dir} can be reached")
    if not state.corpora:
        yield Check("corpora", "note", f"none in {cache_dir} yet", "`hyfuse` alone says how to begin.")
    for corpus in state.corpora:
        stores = f"{corpus.name}: {len(corpus.finished)} stores, {corpus.conditions} of other conditions"
        if corpus.damaged:
            yield Check(
                "corpora",
                "error",
                f"{stores}; damaged: {', '.join(corpus.damaged)}",
                "`hyfuse cache verify` says what is wrong.",
            )
        elif corpus.unfinished:
            yield Check(
                "corpora",
                "note",
                f"{stores}; unfinished: {', '.join(corpus.unfinished)}",
                "`hyfuse` alone says how to go on.",
            )
        else:
            yield Check("corpora", "ok", stores)
        root = recall(cache_dir, corpus.name).root
        if root is not None and not root.is_dir():
            yield Check(
                "corpora",
                "note",
                f"{corpus.name}: its recordings were at {root}, which is gone; what is stored can be used",
                f"For new embeddings: `hyfuse corpora prepare {corpus.name} --root DIR`.",
            )
