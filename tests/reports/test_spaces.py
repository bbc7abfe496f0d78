from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from pipelines.corpora.prepare import Prepared, remember
from pipelines.errors import ConfigError, UnknownNameError
from pipelines.fusion import poincare
from pipelines.reports.run_data import RunData, read_run_data
from pipelines.reports.spaces import MOST_POINTS, ball_to_disk, project, read_pictures
from pipelines.studies.pairs import ComparisonConfig, compare_cells
from pipelines.training.grid import make_cells
from pipelines.training.trainer import TrainConfig
from tests.training.toy import make_corpus


def test_projection_is_that_of_scikit_learn() -> None:
    features = np.random.default_rng(0).normal(size=(200, 12)) @ np.random.default_rng(1).normal(size=(12, 12))
    points, explained = project(features)
    reference = PCA(2, svd_solver="full").fit(StandardScaler().fit_transform(features))
    expected = reference.transform(StandardScaler().fit_transform(features))
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-8)
    np.testing.assert_allclose(explained, reference.explained_variance_ratio_, atol=1e-8)


@pytest.mark.parametrize("features", [np.ones((5, 3)), np.arange(5.0)[:, None], np.zeros((2, 1))])
def test_projection_of_spaces_without_two_directions(features: np.ndarray) -> None:
    points, explained = project(features)
    assert points.shape == (len(features), 2)
    assert np.isfinite(points).all()
    assert 0 <= sum(explained) <= 1 + 1e-9


def test_points_that_lie_in_a_plane_are_drawn_as_they_are() -> None:
    """For such points both ways are an isometry: distances in the ball and in the disk are the same."""
    generator = np.random.default_rng(0)
    plane, _ = np.linalg.qr(generator.normal(size=(20, 2)))
    c = 0.7
    tangent = torch.from_numpy(generator.normal(size=(30, 2)) @ plane.T)
    points = poincare.exp0(tangent, c)
    for radius in ("kept", "projected"):
        drawn, share = ball_to_disk(points.numpy(), c, radius=radius)
        assert share == pytest.approx(1)
        disk = torch.from_numpy(drawn) / np.sqrt(c)
        expected = poincare.dist(points[:, None], points[None], c)
        np.testing.assert_allclose(poincare.dist(disk[:, None], disk[None], c), expected, atol=1e-7)


def test_radius_is_kept_or_shrinks() -> None:
    points = poincare.exp0(torch.from_numpy(np.random.default_rng(0).normal(size=(50, 30)) * 0.2)).numpy()
    kept, share = ball_to_disk(points, 1.0, radius="kept")
    np.testing.assert_allclose(np.linalg.norm(kept, axis=1), np.linalg.norm(points, axis=1), atol=1e-12)
    projected, same_share = ball_to_disk(points, 1.0, radius="projected")
    assert (np.linalg.norm(projected, axis=1) <= np.linalg.norm(points, axis=1) + 1e-12).all()
    assert 0 < share == same_share < 1
    with pytest.raises(ConfigError, match="'kept' or 'projected', not 'x'"):
        ball_to_disk(points, 1.0, radius="x")


def test_extremes_stay_inside_the_disk() -> None:
    rim = np.eye(3) * (1 - 1e-7)
    for points in (rim, np.zeros((3, 4)), np.full((1, 5), 0.1)):
        drawn, _ = ball_to_disk(points, 1.0)
        assert np.isfinite(drawn).all()
        assert (np.linalg.norm(drawn, axis=1) < 1).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunData, Path]:
    """A run with weighted layers and every kind of head in the ball, and its cache."""
    folder = tmp_path_factory.mktemp("toy")
    manifest = make_corpus(folder / "cache")
    remember(Prepared(manifest, ()), folder / "cache")
    config = ComparisonConfig(protocol="speaker-3fold", seeds=1, layer="weighted", train=TrainConfig(epochs=3))
    options = {"beta-concat": {"classifier": "mlr"}, "midpoint": {"learn_curvature": "yes"}}
    cells = make_cells(
        [("ssl", "codec")], ["hyperbolic", "midpoint", "beta-concat", "concat"], ["ssl", "codec"], options=options
    )
    compare_cells(manifest, cells, config=config, cache_dir=folder / "cache", run_dir=folder / "run")
    return read_run_data(folder / "run"), folder / "cache"


def test_every_space_of_a_run_is_drawn(trained: tuple[RunData, Path]) -> None:
    pictures = read_pictures(trained[0])
    assert [space.encoder for space in pictures.spaces] == ["ssl", "codec"]
    assert pictures.spaces[0].representation == "weighted layers, mean+std"
    for space in pictures.spaces:
        assert space.points.shape == (72, 2)
        assert len(space.speakers) == 6
        assert np.isfinite(space.points).all()


@pytest.mark.parametrize("fusion", ["hyperbolic", "midpoint", "beta-concat"])
def test_fused_points_are_those_of_the_very_heads_of_the_run(trained: tuple[RunData, Path], fusion: str) -> None:
    """The norm of the points is what the heads of the run recorded about themselves, and the note has no reservation."""
    data, _ = trained
    title = f"ssl+codec {fusion}"
    pictures = read_pictures(data, disk=title)
    assert len(pictures.disks) == 6
    assert title in pictures.disks[0].title
    assert "do NOT score" not in pictures.disk_note
    kept = [disk for disk in pictures.disks if disk.fold.endswith("kept")]
    for disk in kept:
        (row,) = [row for row in data.run.rows if row["cell"] == title and row["fold"] == disk.fold.split("-")[0]]
        assert len(disk.points) == 24
        assert np.linalg.norm(disk.points, axis=1).mean() == pytest.approx(row["diagnostics"]["fused_norm"], abs=2e-5)


def test_a_run_that_scored_otherwise_is_said(trained: tuple[RunData, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0].run.path, run)
    text = (run / "results.jsonl").read_text()
    (run / "results.jsonl").write_text(text.replace('"uar": 0.', '"uar": 0.1'))
    pictures = read_pictures(read_run_data(run), disk="ssl+codec hyperbolic")
    assert "do NOT score exactly as those of the run" in pictures.disk_note


def test_without_the_stores_the_note_says_what_would_help(trained: tuple[RunData, Path], tmp_path: Path) -> None:
    data, cache = trained
    hidden = cache.with_name("moved")
    cache.rename(hidden)
    try:
        pictures = read_pictures(data)
        assert pictures.spaces == pictures.disks == ()
        assert pictures.space_note.startswith("Not shown")
        assert "hyfuse extract" in pictures.space_note
        assert pictures.disk_note.startswith("Not shown")
        elsewhere = read_pictures(data, cache_dir=hidden)
        assert len(elsewhere.spaces) == 2
        assert len(elsewhere.disks) == 6
    finally:
        hidden.rename(cache)


def test_a_cell_that_is_not_in_the_ball(trained: tuple[RunData, Path]) -> None:
    with pytest.raises(UnknownNameError, match=r"'ssl\+codec concat'.*ssl\+codec hyperbolic.*--disk"):
        read_pictures(trained[0], disk="ssl+codec concat")


def test_of_many_points_the_same_share_of_every_class_is_drawn() -> None:
    from pipelines.reports.spaces import _sample

    labels = np.repeat([0, 1, 2], [9000, 900, 100])
    np.random.default_rng(0).shuffle(labels)
    drawn = _sample(labels)
    assert len(drawn) == len(set(drawn.tolist())) == MOST_POINTS
    np.testing.assert_allclose(np.bincount(labels[drawn]) / MOST_POINTS, [0.9, 0.09, 0.01], atol=0.002)
