"""Teacher and student: terms against plain loops, ordinary training without alpha and beta, no leak, help where there is any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.errors import ConfigError, ProtocolError, UnknownNameError
from pipelines.fusion.catalogue import FUSIONS
from pipelines.training.distillation import (
    DistillationConfig,
    Lessons,
    check_tasks,
    cosine_match,
    distribution_match,
    give_lessons,
    squared_match,
    train_students,
)
from pipelines.training.metrics import concordance
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, fitted_rows, steps_per_epoch, train_stack

N, CLASSES, BLOCKS = 60, 3, 2
CONFIG = TrainConfig(epochs=3, batch_size=20, hidden_dim=16, input_dropout=0.25)
TEACHER = {"fusion": "concat", "options": {"dense_dim": 12}}


def _rows(*bounds: int) -> np.ndarray:
    return np.arange(*bounds, dtype=np.int64)


def _tasks(count: int = 3) -> list[HeadTask]:
    """Teachers' tasks, on the first block alone."""
    folds = [
        (_rows(0, 30), _rows(30, 40), _rows(40, 60)),
        (_rows(20, 50), _rows(50, 60), _rows(0, 20)),
        (_rows(25, 60), _rows(20, 25), _rows(0, 20)),
    ]
    return [HeadTask(f"f{index}", index, *folds[index]) for index in range(count)]


def _students(tasks: list[HeadTask]) -> list[HeadTask]:
    """The same utterances in both blocks."""
    return [
        replace(
            task,
            **{
                part: np.concatenate([getattr(task, part), getattr(task, part) + N])
                for part in ("train", "validation", "test")
            },
        )
        for task in tasks
    ]


class _World:
    """Two inputs, a noisy copy of the first, labels and values."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.left = torch.randn(N, 7, generator=generator)
        self.right = torch.randn(N, 5, generator=generator)
        self.noisy = torch.cat([self.left, self.left + torch.randn(N, 7, generator=generator)])
        self.labels = torch.randint(0, CLASSES, (N,), generator=generator)
        self.values = torch.stack([self.left[:, 0] + self.right[:, 0], 3 - self.left[:, 1]], dim=1)

    def learned(self, target: str, blocks: int = 1) -> dict[str, object]:
        if target == "emotion":
            return {"labels": self.labels.repeat(blocks), "num_classes": CLASSES}
        return {"values": self.values.repeat(blocks, 1)}


def _taught(
    world: _World, target: str, tasks: list[HeadTask], config: TrainConfig = CONFIG
) -> tuple[list[HeadResult], Lessons]:
    teachers = train_stack(
        **TEACHER,  # type: ignore[arg-type]
        left=world.left,
        right=world.right,
        tasks=tasks,
        steps_per_epoch=steps_per_epoch(_tasks(), config),
        config=config,
        **world.learned(target),  # type: ignore[arg-type]
    )
    lessons = give_lessons(
        teachers,
        **TEACHER,
        left=world.left,
        right=world.right,
        utterances=N,
        config=config,  # type: ignore[arg-type]
    )
    return teachers, lessons


def _student(
    world: _World,
    target: str,
    tasks: list[HeadTask],
    lessons: Lessons | None,
    distillation: DistillationConfig,
    config: TrainConfig = CONFIG,
) -> list[HeadResult]:
    return train_students(
        distillation=distillation,
        lessons=lessons,
        fusion="single",
        options={"dense_dim": 10},
        left=world.noisy,
        tasks=_students(tasks),
        steps_per_epoch=steps_per_epoch(_students(_tasks()), config),
        config=config,
        **world.learned(target, BLOCKS),  # type: ignore[arg-type]
    )


def _same(one: HeadResult, other: HeadResult) -> None:
    assert one.test_outputs.tobytes() == other.test_outputs.tobytes()
    assert one.parameters.keys() == other.parameters.keys()
    for name, value in one.parameters.items():
        assert torch.equal(value, other.parameters[name]), name
    for name, curve in one.curves.items():
        assert curve.tobytes() == other.curves[name].tobytes(), name


# ------------------------------------------------------------------------------------------- the terms


def _terms() -> dict[str, tuple[object, object]]:
    """Name to our function and the same of one head and row in torch's words."""

    def squared(found: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(found, wanted)

    def cosine(found: Tensor, wanted: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(found, wanted, dim=0)

    def kl(found: Tensor, wanted: Tensor) -> Tensor:
        own, known = (F.log_softmax(one / 3.0, dim=0) for one in (found, wanted))
        return 9.0 * F.kl_div(own, known, reduction="sum", log_target=True)

    return {
        "mse": (squared_match, squared),
        "cosine": (cosine_match, cosine),
        "kl": (lambda *a, **k: distribution_match(*a, temperature=3.0, **k), kl),
    }


@pytest.mark.parametrize("name", ["mse", "cosine", "kl"])
@pytest.mark.parametrize("weighted", [False, True])
def test_terms_equal_a_plain_loop_with_its_gradient(name: str, weighted: bool) -> None:
    ours, plain = _terms()[name]
    generator = torch.Generator().manual_seed(1)
    found = torch.randn(3, 8, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(3, 8, 6, generator=generator, dtype=torch.float64)
    weights = torch.ones(3, 8, dtype=torch.float64)
    if weighted:
        weights[:, 6:] = 0.0
    losses = ours(found, wanted, row_weights=weights if weighted else None)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(losses.sum(), found)
    for head in range(3):
        own = found[head].detach().requires_grad_()
        total = sum(weights[head, row] * plain(own[row], wanted[head, row]) for row in range(8))  # type: ignore[operator]
        loss = total / weights[head].sum()
        (expected,) = torch.autograd.grad(loss, own)
        torch.testing.assert_close(losses[head], loss)
        torch.testing.assert_close(gradient[head], expected)


def test_terms_at_their_extremes() -> None:
    generator = torch.Generator().manual_seed(2)
    wanted = torch.randn(2, 32, 5, generator=generator)
    assert squared_match(wanted, wanted).tolist() == [0.0, 0.0]
    assert distribution_match(wanted, wanted, temperature=2.0).tolist() == [0.0, 0.0]
    torch.testing.assert_close(cosine_match(2 * wanted, wanted), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(cosine_match(-wanted, wanted), torch.full((2,), 2.0))
    nothing = torch.zeros_like(wanted, requires_grad=True)
    loss = cosine_match(nothing, wanted)
    loss.sum().backward()
    assert loss.tolist() == [1.0, 1.0]
    assert nothing.grad is not None
    assert torch.isfinite(nothing.grad).all()


def test_lessons_are_standardised_on_training_rows_and_unknown_elsewhere() -> None:
    world, tasks = _World(), _tasks()
    for target in ("emotion", "dimensions"):
        _, lessons = _taught(world, target, tasks)
        for head, task in enumerate(tasks):
            rows = fitted_rows(task, CONFIG)
            other = np.setdiff1d(_rows(0, N), rows)
            own = lessons.embeddings[head, rows].double()
            varies = own.std(dim=0) > 0
            assert varies.any()
            assert own.mean(dim=0).abs().max() < 1e-5
            torch.testing.assert_close(own.std(dim=0, correction=0)[varies], torch.ones(int(varies.sum())).double())
            assert lessons.embeddings[head, other].isnan().all()
            assert lessons.outputs[head, other].isnan().all()
            assert lessons.outputs[head, rows].isfinite().all()


@pytest.mark.parametrize("target", ["emotion", "dimensions"])
def test_lessons_are_what_the_teacher_says(target: str) -> None:
    """Asked about its test rows, a teacher gives its test outputs."""
    world, (task, *_) = _World(), _tasks()
    (teacher,), _ = _taught(world, target, [task])
    asked = replace(teacher, task=replace(task, train=task.test, test=task.train))
    lessons = give_lessons(
        [asked],
        **TEACHER,
        left=world.left,
        right=world.right,
        utterances=N,
        config=CONFIG,  # type: ignore[arg-type]
    )
    found = lessons.outputs[0, task.test]
    if target == "emotion":
        found = torch.softmax(found, dim=-1)
    else:
        assert teacher.target_scaler is not None
        found = found * teacher.target_scaler.std + teacher.target_scaler.mean
    np.testing.assert_allclose(found.numpy(), teacher.test_outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fusion", "options"),
    [*((name, {}) for name in FUSIONS), ("hyperbolic", {"classifier": "mlr"}), ("gated", {"dense_dim": 9})],
)
def test_every_fusion_can_teach(fusion: str, options: dict[str, object]) -> None:
    """And teaches the same in any company."""
    world, tasks = _World(), _tasks(2)
    config = replace(CONFIG, epochs=1)
    given = {"fusion": fusion, "options": options, "left": world.left, "right": world.right}
    steps = steps_per_epoch(_tasks(), config)

    def ask(chosen: list[HeadTask]) -> Lessons:
        teachers = train_stack(
            tasks=chosen,
            steps_per_epoch=steps,
            config=config,
            **given,
            **world.learned("emotion"),  # type: ignore[arg-type]
        )
        return give_lessons(teachers, utterances=N, config=config, **given)  # type: ignore[arg-type]

    together, alone = ask(tasks), ask(tasks[1:])
    for name in ("outputs", "embeddings"):
        assert torch.equal(getattr(together, name)[1].nan_to_num(), getattr(alone, name)[0].nan_to_num())
    (student,) = _student(world, "emotion", tasks[1:], alone, DistillationConfig(), config)
    assert np.isfinite(student.test_outputs).all()


# ------------------------------------------------------------------------------------------- training


def _discordance(found: Tensor, wanted: Tensor) -> Tensor:
    spread = found.var(0, correction=0) + wanted.var(0, correction=0) + (found.mean(0) - wanted.mean(0)) ** 2
    shared = ((found - found.mean(0)) * (wanted - wanted.mean(0))).mean(0)
    return (1 - 2 * shared / spread).mean()


def _plain_training(
    world: _World, target: str, task: HeadTask, lessons: Lessons, config: TrainConfig, distillation: DistillationConfig
) -> tuple[dict[str, Tensor], list[float]]:
    """One student by torch's autograd and torch's AdamW, in the words of the formula; dropout off."""
    from pipelines.fusion.catalogue import build_head
    from pipelines.fusion.stacked import StackedLinear
    from pipelines.training.trainer import _BatchWalk, _learning_rate, fit_scaler, head_seed

    (student,) = _students([task])
    rows = fitted_rows(student, config)
    seeds = [head_seed(task.fold, task.seed)]
    outputs = CLASSES if target == "emotion" else 2
    head = build_head(
        "single", left_dim=7, right_dim=None, num_classes=outputs, head_seeds=seeds, hidden_dim=config.hidden_dim,
        options={"dense_dim": 10},
    )  # fmt: skip
    project = StackedLinear(10, lessons.embeddings.shape[-1], head_seeds=seeds, name="guidance")
    parameters = dict(head.named_parameters()) | {f"guidance.{n}": p for n, p in project.named_parameters()}
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [p for n, p in parameters.items() if n.endswith(".weight")],
                "weight_decay": config.weight_decay,
            },
            {"params": [p for n, p in parameters.items() if not n.endswith(".weight")], "weight_decay": 0.0},
        ]
    )
    scaler, of_values = fit_scaler(world.noisy, rows), fit_scaler(world.values.repeat(2, 1), rows)
    steps = steps_per_epoch(_students(_tasks()), config)
    walk = _BatchWalk([rows], seeds, steps=steps, batch_size=config.batch_size)
    curve = []
    for epoch in range(config.epochs):
        batches, total = walk.next_epoch()[0], 0.0
        for step in range(steps):
            at = batches[step]
            x = (world.noisy[at] - scaler.mean) / scaler.std
            hidden = torch.relu(x @ head.left_project.weight[0] + head.left_project.bias[0])
            dense = head.dense(hidden[None])[0]
            found = dense @ head.classify.weight[0] + head.classify.bias[0]
            utterance = at % N
            loss = distillation.alpha * F.mse_loss(
                dense @ project.weight[0] + project.bias[0], lessons.embeddings[0, utterance]
            )
            wanted = lessons.outputs[0, utterance]
            if target == "emotion":
                loss = loss + F.cross_entropy(found, world.labels[utterance], label_smoothing=config.label_smoothing)
                own, known = (F.log_softmax(one / distillation.temperature, dim=1) for one in (found, wanted))
                kl = F.kl_div(own, known, reduction="batchmean", log_target=True)
                loss = loss + distillation.beta * distillation.temperature**2 * kl
            else:
                true = (world.values[utterance] - of_values.mean) / of_values.std
                match = F.mse_loss if distillation.output_match == "mse" else _discordance
                loss = loss + _discordance(found, true) + distillation.beta * match(found, wanted)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.clip_norm)
            for group in optimiser.param_groups:
                group["lr"] = _learning_rate(config, epoch * steps + step, config.epochs * steps)
            optimiser.step()
            total += float(loss.detach())
        curve.append(total / steps)
    return {name: p.detach()[0] for name, p in parameters.items() if not name.startswith("guidance")}, curve


@pytest.mark.parametrize(("target", "match"), [("emotion", "kl"), ("dimensions", "mse"), ("dimensions", "ccc")])
def test_students_equal_a_plain_loop(target: str, match: str) -> None:
    world, (task, *_) = _World(), _tasks()
    config = replace(CONFIG, input_dropout=0.0, epochs=4)
    distillation = DistillationConfig(
        alpha=0.7, beta=1.5, temperature=3.0, output_match="" if target == "emotion" else match
    )
    _, lessons = _taught(world, target, [task], config)
    (found,) = _student(world, target, [task], lessons, distillation, config)
    expected, curve = _plain_training(world, target, task, lessons, config, distillation)
    np.testing.assert_allclose(found.curves["train_loss"], curve, rtol=1e-4)
    assert found.parameters.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.parameters[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("target", ["emotion", "dimensions"])
@pytest.mark.parametrize("selection", ["fixed", "loss"])
def test_without_alpha_and_beta_it_is_ordinary_training(target: str, selection: str) -> None:
    world, tasks = _World(), _tasks()
    config = replace(CONFIG, selection=selection)
    _, lessons = _taught(world, target, tasks, config)
    ordinary = train_stack(
        fusion="single",
        options={"dense_dim": 10},
        left=world.noisy,
        right=None,
        tasks=_students(tasks),
        steps_per_epoch=steps_per_epoch(_students(tasks), config),
        config=config,
        **world.learned(target, BLOCKS),  # type: ignore[arg-type]
    )
    unguided = _student(world, target, tasks, lessons, DistillationConfig(alpha=0.0, beta=0.0), config)
    guided = _student(world, target, tasks, lessons, DistillationConfig(), config)
    for one, other, third in zip(ordinary, unguided, guided, strict=True):
        _same(one, other)
        assert one.test_outputs.tobytes() != third.test_outputs.tobytes()


@pytest.mark.parametrize(
    ("target", "distillation"),
    [
        ("emotion", DistillationConfig()),
        ("emotion", DistillationConfig(beta=0.0, embedding_match="cosine")),
        ("dimensions", DistillationConfig()),
        ("dimensions", DistillationConfig(alpha=0.0, output_match="mse")),
    ],
)
def test_a_student_does_not_depend_on_its_stack(target: str, distillation: DistillationConfig) -> None:
    world, tasks = _World(), _tasks()
    config = replace(CONFIG, batch_size=24)  # padded to 32 rows
    _, lessons = _taught(world, target, tasks, config)
    together = _student(world, target, tasks, lessons, distillation, config)
    for head, task in enumerate(tasks):
        _, own = _taught(world, target, [task], config)
        for name in ("outputs", "embeddings"):
            assert torch.equal(getattr(own, name)[0].nan_to_num(), getattr(lessons, name)[head].nan_to_num())
        (alone,) = _student(world, target, [task], own, distillation, config)
        _same(alone, together[head])


@pytest.mark.parametrize("target", ["emotion", "dimensions"])
def test_nothing_of_the_test_rows_reaches_a_student(target: str) -> None:
    """Neither what the teacher says of them, nor their labels, nor their embeddings: the parameters stay the same, bit for bit."""
    world, tasks = _World(), _tasks(1)
    distillation = DistillationConfig()
    _, lessons = _taught(world, target, tasks)
    (before,) = _student(world, target, tasks, lessons, distillation)
    other, test = _World(), tasks[0].test
    for block in range(BLOCKS):
        other.noisy[test + block * N] = 100.0
    other.left[test], other.right[test], other.values[test] = -50.0, 50.0, 1e3
    other.labels[test] = 0
    _, changed = _taught(other, target, tasks)
    for name in ("outputs", "embeddings"):
        assert torch.equal(getattr(changed, name).nan_to_num(), getattr(lessons, name).nan_to_num())
    said = Lessons(changed.outputs.clone(), changed.embeddings.clone())
    said.outputs[:, test], said.embeddings[:, test] = 9.0, -9.0
    (after,) = _student(other, target, tasks, said, distillation)
    for name, value in before.parameters.items():
        assert torch.equal(value, after.parameters[name]), name
    assert before.test_outputs.tobytes() != after.test_outputs.tobytes()


def _few_labels(seed: int, *, informed: bool) -> tuple[float, float]:
    """CCC of a student and of its baseline in a world where labels are noisy and the teacher knows the truth, or nothing."""
    generator = torch.Generator().manual_seed(seed)
    count, train = 240, 60
    x = torch.randn(count, 6, generator=generator)
    truth = x @ torch.randn(6, 2, generator=generator)
    noisy = truth.clone()
    noisy[:train] += 4.0 * torch.randn(train, 2, generator=generator)
    said = truth if informed else truth[torch.randperm(train, generator=generator).repeat(count // train)]
    said = (said - said[:train].mean(0)) / said[:train].std(0)
    task = HeadTask("1", seed, _rows(0, train - 10), _rows(train - 10, train), _rows(train, count))
    config = TrainConfig(epochs=60, batch_size=30, hidden_dim=16, input_dropout=0.0, learning_rate=3e-3)
    lessons = Lessons(said[None].float(), said[None].float())
    scores = []
    for distillation in (
        DistillationConfig(alpha=1.0, beta=4.0, output_match="mse"),
        DistillationConfig(alpha=0.0, beta=0.0),
    ):
        (found,) = train_students(
            distillation=distillation,
            lessons=lessons,
            fusion="single",
            options={},
            left=x,
            tasks=[task],
            steps_per_epoch=2,
            config=config,
            values=noisy,
        )
        scores.append(float(concordance(truth[train:].numpy().T, found.test_outputs.T).mean()))
    return scores[0], scores[1]


def test_a_teacher_that_knows_the_truth_helps() -> None:
    gains = [student - baseline for student, baseline in (_few_labels(seed, informed=True) for seed in range(4))]
    assert min(gains) > 0.0
    assert np.mean(gains) > 0.1


def test_a_teacher_that_knows_nothing_does_not_help() -> None:
    gains = [student - baseline for student, baseline in (_few_labels(seed, informed=False) for seed in range(4))]
    assert max(gains) < 0.02


# ------------------------------------------------------------------------------------------- mistakes


def test_teacher_and_student_must_belong_together() -> None:
    tasks = _tasks(2)
    check_tasks(tasks, _students(tasks), utterances=N)
    with pytest.raises(ProtocolError, match=r"1 teacher\(s\) and 2 student\(s\) are of different folds or seeds"):
        check_tasks(tasks[:1], _students(tasks), utterances=N)
    with pytest.raises(ProtocolError, match=r"difference is \('f0', 0\) against \('f1', 1\)"):
        check_tasks(tasks, _students(tasks[::-1]), utterances=N)
    leaking = [replace(tasks[0], train=_rows(0, 45)), tasks[1]]
    with pytest.raises(ProtocolError, match="teacher was trained on 5 of the 20 utterances that the student is tested"):
        check_tasks(leaking, _students(tasks), utterances=N)
    less = [replace(tasks[0], train=_rows(0, 27)), tasks[1]]
    with pytest.raises(ProtocolError, match="3 of the 40 utterances that the student learns from are not among"):
        check_tasks(less, _students(tasks), utterances=N)


def test_lessons_of_other_rows_or_students_are_refused() -> None:
    world, tasks = _World(), _tasks(2)
    teachers, lessons = _taught(world, "emotion", tasks)
    with pytest.raises(ConfigError, match=r"1 student\(s\) of 3 outputs need as many lessons; there are those of \(2,"):
        _student(world, "emotion", tasks[:1], lessons, DistillationConfig())
    with pytest.raises(ConfigError, match="of 2 outputs need as many lessons; there are none"):
        _student(world, "dimensions", tasks[:1], None, DistillationConfig())
    moved = [replace(teachers[0], task=_students(tasks)[0])]
    with pytest.raises(ProtocolError, match=r"trained on row 99, but its lessons are of rows 0\.\.59"):
        give_lessons(moved, **TEACHER, left=world.left, right=world.right, utterances=N, config=CONFIG)  # type: ignore[arg-type]


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="--alpha must be 0 or more, not -1"):
        DistillationConfig(alpha=-1.0)
    with pytest.raises(ConfigError, match="--temperature must be a positive number"):
        DistillationConfig(temperature=0.0)
    with pytest.raises(UnknownNameError, match="cosine, mse"):
        DistillationConfig(embedding_match="l1")
    with pytest.raises(UnknownNameError, match="kl"):
        DistillationConfig(output_match="k1")
    with pytest.raises(ConfigError, match="--output-match kl means nothing to --target dimensions; it has ccc and mse"):
        DistillationConfig(output_match="kl").match_of("dimensions")
    assert DistillationConfig().match_of("emotion") == "kl"
    assert DistillationConfig().match_of("dimensions") == "ccc"
