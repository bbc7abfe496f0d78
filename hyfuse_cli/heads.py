"""What ``train``, ``compare`` and ``tune`` share: the options of heads and of training, declared once, and what becomes of them."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from hyfuse_cli import console
from hyfuse_cli.options import DEFAULT_CACHE, CacheDir, CorpusOption, Device, RunName, RunsDir, Workers

if TYPE_CHECKING:
    from pipelines.corpora.manifest import Manifest
    from pipelines.studies.pairs import Comparison, ComparisonConfig
    from pipelines.training.grid import Cell
    from pipelines.training.recipes import Recipe

__all__ = ["HeadSettings", "run_comparison", "say_estimate", "show_comparison", "split_names", "takes_settings"]

ALL = "all"
BOTH = "both"


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """Options as they were given; see the methods for what they mean."""

    corpus: CorpusOption = None
    target: Annotated[
        str,
        typer.Option("--target", help="What is learned: emotion, or dimensions (arousal, valence, dominance; by CCC)."),
    ] = "emotion"
    dimensions: Annotated[
        str | None,
        typer.Option(
            "--dimensions",
            help="With --target dimensions: some of arousal (or activation), valence, dominance; default: all there are.",
        ),
    ] = None
    labels: Annotated[
        str, typer.Option("--labels", help="Emotions to learn from: hard (the label) or soft (the votes of raters).")
    ] = "hard"
    recipe: Annotated[str, typer.Option("--recipe", help="Where options begin: hyfuse, or paper (as published).")] = (
        "hyfuse"
    )
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="NAME=VALUE of the fusions that have it, or FUSION.NAME=VALUE; repeatable."),
    ] = None
    order: Annotated[
        str | None,
        typer.Option("--order", help="Operand order of fusions that have one: left-right, right-left, or both."),
    ] = None
    classifier: Annotated[
        str | None, typer.Option("--classifier", help="Output layer of fusions in the ball: dense or mlr.")
    ] = None
    front_end: Annotated[str | None, typer.Option("--front-end", help="Of every stream: linear or cnn.")] = None
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            help="Of encoders with layers: last, a number, or weighted (learned by each head); ENCODER=… for one; repeatable.",
        ),
    ] = None
    representation: Annotated[
        list[str] | None,
        typer.Option("--representation", help="ENCODER=REPRESENTATION, for instance encodec=quantized; repeatable."),
    ] = None
    pool: Annotated[str, typer.Option("--pool", help="mean, std or mean+std of the frames.")] = "mean+std"
    classes: Annotated[
        str | None, typer.Option("--classes", help="Emotions, comma separated; default: the corpus' own.")
    ] = None
    condition: Annotated[
        str, typer.Option("--condition", help="Under which the recordings were encoded (see `hyfuse cache list`).")
    ] = "clean"
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="How speakers are divided; default: the corpus' own.")
    ] = None
    seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds.")] = 5
    epochs: Annotated[int | None, typer.Option("--epochs", help="Epochs of training.")] = None
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Utterances per step.")] = None
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Step size of AdamW.")] = None
    class_weights: Annotated[
        str | None,
        typer.Option("--class-weights", help="none, or balanced: rare classes count as much as frequent ones."),
    ] = None
    selection: Annotated[
        str | None,
        typer.Option(
            "--selection",
            help="Epoch kept: fixed or last (nothing selected), loss, uar or (of dimensions) ccc: best on validation.",
        ),
    ] = None
    training: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="NAME=VALUE of any other setting of training, such as label_smoothing=0; repeatable."
        ),
    ] = None
    run: RunName = None
    runs_dir: RunsDir = Path("runs")
    cache_dir: CacheDir = DEFAULT_CACHE
    workers: Workers = None
    device: Device = "cpu"

    def manifest(self) -> Manifest:
        """The corpus."""
        from pipelines.corpora.resolve import recall_corpus

        return recall_corpus(self.corpus, cache_dir=self.cache_dir)

    def chosen_recipe(self) -> Recipe:
        """The recipe that was asked for.

        Raises:
            UnknownNameError: no such recipe.
        """
        from pipelines.training.recipes import recipe

        return recipe(self.recipe)

    def options_of(self, fusions: Sequence[str]) -> dict[str, dict[str, object]]:
        """Options of each fusion and of the baseline ``single``: the recipe's, replaced by those that were given.

        Args:
            fusions: names of the fusions that are to be trained.

        Raises:
            UnknownNameError: an option that none of them has.
            ConfigError: an option without a value.
        """
        from pipelines.errors import ConfigError, unknown_name
        from pipelines.fusion.catalogue import SINGLE, applicable_options, fusion_spec

        trained = [SINGLE, *fusions]
        found = {name: applicable_options(name, self.chosen_recipe().head_options) for name in trained}
        order = "left-right" if self.order == BOTH else self.order
        named = {"--order": order, "--classifier": self.classifier, "--front-end": self.front_end}
        given = [(key.removeprefix("--").replace("-", "_"), value, key) for key, value in named.items() if value]
        for entry in self.option or ():
            key, equals, value = entry.partition("=")
            if not (key and equals and value):
                raise ConfigError(f"--option must be NAME=VALUE, such as max_radius=0.3, not {entry!r}.")
            given.append((key, value, f"--option {key}"))
        for key, value, option in given:
            only, dot, name = key.rpartition(".")
            if dot and only not in trained:
                raise unknown_name("fusion in --option", only, trained)
            takers = [fusion for fusion in ([only] if dot else trained) if name in fusion_spec(fusion).options]
            if not takers:
                asked = [only] if dot else list(fusions) or [SINGLE]
                valid = sorted({known for fusion in asked for known in fusion_spec(fusion).options})
                if option.startswith("--option"):
                    raise unknown_name(f"option of {' or '.join(asked)}", name, valid)
                raise ConfigError(
                    f"{option} means nothing to {' or '.join(map(repr, asked))}. Options: {', '.join(valid) or 'none'}."
                )
            for fusion in takers:
                found[fusion][name] = value
        return found

    def cells(self, pairs: Sequence[tuple[str, str]], fusions: Sequence[str], singles: Sequence[str]) -> list[Cell]:
        """What to compare; with ``--order both``, fusions whose operands have an order in either order.

        Raises:
            UnknownNameError: no such target, fusion or option.
            ConfigError: an option that makes no sense.
        """
        from pipelines.errors import unknown_name
        from pipelines.training.data import TARGETS
        from pipelines.training.grid import make_cells

        if self.target not in TARGETS:
            raise unknown_name("target", self.target, TARGETS)
        both, options = self.order == BOTH, self.options_of(fusions)
        return make_cells(pairs, fusions, singles, options=options, both_orders=both, target=self.target)

    def config(self) -> ComparisonConfig:
        """Settings of a comparison; options that were not given keep the recipe's values.

        Raises:
            UnknownNameError: an unknown setting or choice.
            ConfigError: a setting that makes no sense.
        """
        from pipelines.errors import ConfigError
        from pipelines.studies.pairs import ComparisonConfig
        from pipelines.training.data import canonical_dimensions
        from pipelines.training.trainer import TrainConfig

        start = self.chosen_recipe().train
        given: dict[str, Any] = {
            name: value
            for name, value in (
                ("epochs", self.epochs),
                ("batch_size", self.batch_size),
                ("learning_rate", self.learning_rate),
                ("class_weights", self.class_weights),
                ("selection", self.selection),
                *(_setting(entry) for entry in self.training or ()),
            )
            if value is not None
        }
        if given.get("selection") in ("fixed", "last") and "patience" not in given:
            given["patience"] = 0  # the recipe's patience watches a score that nobody computes
        train = TrainConfig.from_mapping({**asdict(start), **given})
        # A split with a development part suggests another selection than the default one, but not than one that was chosen.
        chosen = given.get("selection") or (start.selection if start.selection != TrainConfig().selection else "")
        layers, representations = [], {}
        for entry in self.layer or ():
            encoder, equals, name = entry.rpartition("=")
            if equals:
                representations[encoder] = name
            else:
                layers.append(name)
        if len(layers) > 1:
            raise ConfigError(
                f"--layer was given as {' and '.join(layers)}. Name the encoder: --layer wavlm={layers[-1]}."
            )
        for entry in self.representation or ():
            encoder, equals, name = entry.partition("=")
            if not (encoder and equals and name):
                raise ConfigError(
                    f"--representation must be ENCODER=REPRESENTATION, such as wavlm=layer_06, not {entry!r}."
                )
            representations[encoder] = name
        return ComparisonConfig(
            protocol=self.protocol or "",
            seeds=self.seeds,
            pool=self.pool,
            representations=representations,
            layer=layers[0] if layers else "",
            classes=tuple(name.strip() for name in self.classes.split(",")) if self.classes else (),
            condition=self.condition,
            selection=chosen,
            train=train,
            recipe=self.recipe,
            target=self.target,
            dimensions=canonical_dimensions(split_names(self.dimensions)),
            labels=self.labels,
        )

    def run_dir(self, parts: Iterable[str | None]) -> Path:
        """Folder of the run: as named, or named after its parts and whatever else is not as usual.

        Raises:
            ConfigError: a name with path separators or other odd characters.
        """
        from pipelines.errors import ConfigError
        from pipelines.training.data import canonical_dimensions

        differs = (
            "" if self.target == "emotion" else self.target,
            *canonical_dimensions(split_names(self.dimensions)),
            "" if self.labels == "hard" else self.labels,
            self.order,
            self.protocol,
            "" if self.condition == "clean" else self.condition,
            "" if self.recipe == "hyfuse" else self.recipe,
            *(entry.replace("=", "-") for entry in self.layer or ()),
        )
        chosen = self.run or re.sub(r"[^\w.+-]", "-", "-".join(filter(None, (*parts, *differs))))
        if not re.fullmatch(r"\w[\w.+-]{0,150}", chosen):
            raise ConfigError(
                f"--run {chosen!r} cannot be a folder's name. Use letters, digits, '.', '_', '+' and '-'."
            )
        return self.runs_dir / chosen

    def processes(self) -> int:
        """How many to use."""
        return self.workers or os.cpu_count() or 1


def _setting(entry: str) -> tuple[str, Any]:
    """``NAME=VALUE`` of a training setting, the value of the setting's type.

    Raises:
        ConfigError: not of that form, or no such value.
        UnknownNameError: no such setting.
    """
    from pipelines.errors import ConfigError, unknown_name
    from pipelines.training.trainer import TrainConfig

    kinds: dict[str, type] = {setting.name: type(setting.default) for setting in fields(TrainConfig)}
    name, equals, value = entry.partition("=")
    if not equals or not value:
        raise ConfigError(f"--set must be NAME=VALUE, such as label_smoothing=0.2, not {entry!r}.")
    if name not in kinds:
        raise unknown_name("training option in --set", name, kinds)
    try:
        return name, kinds[name](value)
    except ValueError:
        raise ConfigError(f"--set {name}={value}: {kinds[name].__name__} is expected.") from None


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of :class:`HeadSettings`; it receives them as ``settings``."""
    hints = get_type_hints(HeadSettings, include_extras=True)
    by_name = inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [parameter for parameter in own if parameter.name != "settings"] + [
        inspect.Parameter(entry.name, by_name, default=entry.default, annotation=hints[entry.name])
        for entry in fields(HeadSettings)
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        settings = HeadSettings(**{entry.name: given.pop(entry.name) for entry in fields(HeadSettings)})
        command(**given, settings=settings)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def split_names(given: str | None) -> list[str]:
    """Names separated by commas or spaces."""
    return [name for name in re.split(r"[\s,]+", given or "") if name]


DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be trained and about how long it would take.")
]


def say_estimate(manifest: Manifest, cells: Sequence[Cell], *, settings: HeadSettings, run_dir: Path) -> None:
    """What a comparison would do, from a few epochs of a few heads."""
    from hyfuse_cli.extract import duration
    from pipelines.guidance.estimate import estimate_comparison

    found = estimate_comparison(
        manifest,
        cells,
        config=settings.config(),
        cache_dir=settings.cache_dir,
        run_dir=run_dir,
        workers=settings.processes(),
        device=settings.device,
    )
    console.out.print(
        f"{len(cells)} cells, {found.heads} heads, of which {run_dir} holds {found.finished}. The others take about"
        f" {duration(found.seconds)} in {settings.processes()} processes on this machine as busy as it is now, and"
        f" {found.data_bytes / 1e6:.0f} MB of embeddings are read. Nothing was done.",
        markup=False,
        soft_wrap=True,
    )


def run_comparison(
    manifest: Manifest, cells: Sequence[Cell], *, settings: HeadSettings, run_dir: Path, save_heads: bool = False
) -> Comparison:
    """Train, score, show and write the table."""
    from pipelines.studies.pairs import compare_cells

    with console.meter("training", "heads") as update:
        comparison = compare_cells(
            manifest,
            cells,
            config=settings.config(),
            cache_dir=settings.cache_dir,
            run_dir=run_dir,
            workers=settings.processes(),
            device=settings.device,
            save_heads=save_heads,
            progress=update,
        )
    show_comparison(comparison, run_dir)
    return comparison


def show_comparison(comparison: Comparison, run_dir: Path) -> None:
    """Show and write the table."""
    from pipelines.reports.tables import build_table, write_table

    table = build_table(comparison)
    write_table(table, run_dir)
    console.show_table(table)
    console.out.print(
        f"{comparison.trained} heads trained in {comparison.seconds:.0f} s, {comparison.reused} taken from an earlier call."
    )
