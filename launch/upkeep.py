"""The verbs around runs: what one will need (`ser plan`), models for machines without internet (`ser fetch`), and what may
go (`ser gc`)."""

from pathlib import Path
from typing import Annotated

import typer

from launch.display import Display

verbs = typer.Typer(rich_markup_mode=None)
RecipeName = Annotated[
    str, typer.Argument(help="a recipe file, or the name of one that comes with the package")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides: key.path=value")]
Variant = Annotated[str | None, typer.Option(help="a variant named in the recipe")]


@verbs.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    variant: Variant = None,
    nodes: Annotated[int, typer.Option(help="machines")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs a machine")] = 8,
    gpu: Annotated[str | None, typer.Option(help="h100, a100, ... or a GPU's memory in GiB")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="run a few steps of each model on this machine first")
    ] = False,
    speed: Annotated[
        list[str] | None,
        typer.Option(help="[MODEL=]SECONDS of audio that a GPU trains on in a second; repeatable"),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="file of measured speeds; default speed.json in the run directory")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="of speech, where the dataset is not packed yet")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="with --hours: how many; default the recipe's, or 5")
    ] = None,
    price: Annotated[float | None, typer.Option(help="of a GPU and hour")] = None,
) -> None:
    """Parameters, memory, disk, hours and cost of a recipe before anything starts, without weights or network."""
    from launch.planning import Asked, show
    from ser.recipe import load

    asked = Asked(nodes, gpus_per_node, gpu, hours, folds, speed or [], figures, measure, price)
    show(load(recipe, overrides or [], variant), asked, Display())


@verbs.command()
def fetch(
    recipe: RecipeName,
    overrides: Overrides = None,
    variant: Variant = None,
    update: Annotated[
        bool, typer.Option("--update", help="move to what the names stand for now, not to the locked commits")
    ] = False,
) -> None:
    """Put a recipe's hub models into the cache (HF_HOME) at one commit each, for jobs without internet."""
    from huggingface_hub import constants

    from ser import hubs
    from ser.recipe import find, load

    path = find(recipe)
    found = hubs.fetch(load(recipe, overrides or [], variant), path, update, typer.echo)
    if not found:
        typer.echo("this recipe names no hub model")
        return
    typer.echo(f"commits and sha256: {hubs.lock_of(path)}")
    typer.echo(f"jobs: HF_HUB_OFFLINE=1 HF_HOME={constants.HF_HOME}")


@verbs.command()
def gc(
    named: Annotated[
        list[str] | None,
        typer.Argument(help="run directories and datasets; default all below runs/, and the cache"),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="delete what is found; else it is only shown")
    ] = False,
    gone: Annotated[
        list[str] | None,
        typer.Option(help="a run of the dataset that is no more, and needs nothing; repeatable"),
    ] = None,
) -> None:
    """Find stored targets, features and frames, trainings set aside, checkpoints and caches that nothing refers to."""
    from launch.leftovers import collect

    collect(named or [], gone or [], delete, Display())
