"""Extraction on a Ray cluster: blocks as tasks of actors, each with its own copy of the encoder.

Joins the cluster that ``ray.init(address="auto")`` finds, or starts Ray on this machine alone. The corpus' folder, the weights
and the cache must be reachable by the same names from every node: shared folders, or object storage for the cache. The driver
(this process) holds the store's lock. A worker that is lost with its node is replaced, and its blocks are done again; who does
which block changes no bit, as long as all nodes have the same kind of processor and the same libraries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch

from pipelines.audio.conditions import Distortion
from pipelines.corpora.manifest import Manifest
from pipelines.encoders.base import Encoder
from pipelines.errors import HyfuseError, InstallationError, WorkerError
from pipelines.extraction.engines.local import ExtractionProgress, Tally, extraction_provenance
from pipelines.extraction.engines.processes import EncoderLoader, check_same_weights, do_blocks
from pipelines.extraction.texts import CorpusTexts, texts_for
from pipelines.extraction.worker import Work
from pipelines.locations import Location
from pipelines.store.embeddings import (
    BLOCK_ROWS,
    EmbeddingStore,
    FrameSpec,
    StoreWriter,
    attach_writer,
    open_store,
    open_writer,
    store_path,
)

__all__ = ["extract_with_ray"]

_BLOCKS_PER_TASK = 4
"""Within a task the next block is decoded while one is encoded."""

_MOST_DEATHS = 3


class _Worker:
    """An actor; encoder and store are opened with the first blocks, so that what goes wrong there is told like anything else."""

    def __init__(self, load: EncoderLoader, device: str, threads: int, digest: str, work: Work, path: Location) -> None:
        self._load, self._device, self._threads, self._digest = load, device, threads, digest
        self._work, self._path = work, path
        self._opened: tuple[Encoder, StoreWriter] | None = None

    def do(self, indices: Sequence[int]) -> tuple[float, dict[str, str]]:
        """Seconds of audio encoded, and what failed."""
        if self._opened is None:
            torch.set_num_threads(self._threads)
            encoder = self._load(device=self._device)
            check_same_weights(encoder, self._digest)
            self._opened = encoder, attach_writer(self._path)
        encoder, writer = self._opened
        seconds, failed = 0.0, dict[str, str]()

        def done(_: int, more: float) -> None:
            nonlocal seconds
            seconds += more

        do_blocks(self._work, encoder, writer, indices, done=done, written=lambda _, reasons: failed.update(reasons))
        return seconds, failed


def _start_ray(workers: int | None) -> Any:
    """Ray, connected to the running cluster or started on this machine."""
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise InstallationError(
            f"--engine ray needs the package ray ({error}). Install it: `pip install 'hyfuse[ray]'`, or leave --engine out."
        ) from error
    if not ray.is_initialized():
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:
            ray.init(num_cpus=workers, include_dashboard=False, **quiet)
    return ray


def extract_with_ray(
    manifest: Manifest,
    load: EncoderLoader,
    *,
    device: str,
    workers: int | None = None,
    cache_dir: Location,
    distortion: Distortion | None = None,
    texts: CorpusTexts | None = None,
    frames: FrameSpec | None = None,
    decode_workers: int | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
    progress: Callable[[ExtractionProgress], None] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> EmbeddingStore:
    """As :func:`pipelines.extraction.engines.local.extract_corpus`, on a Ray cluster.

    Args:
        manifest: the corpus, with its root.
        load: builds the encoder in every worker.
        device: ``cpu`` or ``cuda``, of the workers; on ``cuda`` each has a GPU to itself.
        workers: actors; by default one per GPU, or per CPU core of the cluster.
        cache_dir: and the others: see there.

    Raises:
        InstallationError: ray is not installed.
        WorkerError: workers are lost again and again, or the cluster has no such device.
    """
    ray = _start_ray(workers)
    encoder = load(device="cpu")
    texts = texts_for(manifest, encoder.spec, texts, distorted=distortion is not None, allowed=max_failures)
    provenance = extraction_provenance(manifest, encoder, distortion=distortion, texts=texts, device=device)
    path = store_path(cache_dir, manifest.corpus, encoder.spec.name, provenance.condition)
    digest = encoder.weights.digest
    del encoder
    there = ray.cluster_resources()
    most = int(there.get("GPU" if device == "cuda" else "CPU", 0))
    if most == 0:
        raise WorkerError("The Ray cluster has no GPU. Use `--device cpu`, or add nodes with GPUs.")
    count = min(workers or most, most)
    with open_writer(
        path,
        provenance=provenance,
        utterance_ids=manifest.utterance_ids,
        block_rows=block_rows,
        frames=frames,
        retry_failed=retry_failed,
    ) as writer:
        tally = Tally(writer, max_failures=max_failures, retry_failed=retry_failed, progress=progress)
        todo = tally.indices
        work = ray.put(Work(manifest, writer.store.block_rows, distortion, frames, decode_workers, texts))
        needs = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
        worker_class = ray.remote(**needs)(_Worker)

        def start() -> Any:
            return worker_class.remote(load, device, 1 if device == "cpu" else 4, digest, work, path)

        size = max(1, min(_BLOCKS_PER_TASK, len(todo) // count))
        tasks = deque(todo[begin : begin + size] for begin in range(0, len(todo), size))
        idle = [start() for _ in range(min(count, len(tasks)))]
        running: dict[Any, tuple[Any, list[int]]] = {}
        deaths = 0
        try:
            while tasks or running:
                while tasks and idle:
                    actor, indices = idle.pop(), tasks.popleft()
                    running[actor.do.remote(indices)] = (actor, indices)
                (finished, *_), _ = ray.wait(list(running), num_returns=1)
                actor, indices = running.pop(finished)
                try:
                    seconds, failed = ray.get(finished)
                except ray.exceptions.RayActorError as error:
                    deaths += 1
                    if deaths >= _MOST_DEATHS:
                        raise WorkerError(
                            f"Ray workers keep dying ({_first_line(error)}). Whatever was finished is kept; run the same command"
                            " again with fewer --workers."
                        ) from error
                    tasks.appendleft(indices)
                    idle.append(start())
                    continue
                except ray.exceptions.RayTaskError as error:
                    if isinstance(cause := _cause(error), HyfuseError):
                        raise cause from error
                    raise WorkerError(f"A Ray worker failed: {_first_line(error)}") from error
                deaths = 0
                idle.append(actor)
                tally.failures.add(failed)
                tally.add(sum(len(writer.rows_of(index)) for index in indices), seconds)
        finally:
            for actor in [*idle, *(actor for actor, _ in running.values())]:
                ray.kill(actor)
    return open_store(path)


def _cause(error: BaseException) -> BaseException:
    """What was raised in the worker."""
    found = getattr(error, "cause", None)
    return found if isinstance(found, BaseException) else error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
