"""``hyfuse bench grid``."""

from __future__ import annotations

from pipelines.studies.bench import bench_grid


def test_all_heads_are_trained_and_counted() -> None:
    found = bench_grid(
        encoders_per_family=1,
        dim=4,
        utterances=200,
        speakers=10,
        num_classes=2,
        fusions=["concat", "hyperbolic"],
        seeds=1,
        workers=1,
    )
    # Five folds: two singles and two fusions under one seed, and the linear rung of both singles and the pair.
    assert (found["pairs"], found["singles"], found["folds"]) == (1, 2, 5)
    assert found["heads"] == 5 * (2 + 2 + 3)
    assert found["seconds"] > 0
    assert found["cpu_s"] > 0
    assert found["peak_memory_mb"] > 10
