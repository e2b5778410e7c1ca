"""The verbs of submitted runs: `ser submit`, `status`, `logs`, `cancel`."""

from typing import TYPE_CHECKING, Annotated

import typer

from launch.display import Display

if TYPE_CHECKING:
    from launch.profile import Profile

verbs = typer.Typer(rich_markup_mode=None)
RunName = Annotated[
    str,
    typer.Argument(help="a run: its directory, its name below runs/, or the recipe it was submitted with"),
]
Variant = Annotated[str | None, typer.Option(help="a variant named in the recipe")]
Site = Annotated[
    str | None,
    typer.Option(
        "--profile", help="the site's profile, where a recipe is named and the profile has a folder"
    ),
]


@verbs.command()
def submit(
    recipe: Annotated[
        str, typer.Argument(help="a recipe file, or the name of one that comes with the package")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="overrides: key.path=value")] = None,
    variant: Variant = None,
    to: Annotated[str | None, typer.Option(help="local, slurm, ray, kuberay or skypilot")] = None,
    profile: Annotated[
        str | None, typer.Option(help="a site's profile: a file, or a name in ~/.config/ser")
    ] = None,
    until: Annotated[str, typer.Option(help="last stage, as in ser run")] = "report",
    folds: Annotated[bool, typer.Option(help="slurm: an array of jobs, a fold each")] = False,
    training: Annotated[
        str | None,
        typer.Option(help="slurm: 'MODEL FOLD SEED', one training without Ray (slurm.start: srun)"),
    ] = None,
    sweep: Annotated[bool, typer.Option(help="ser sweep instead of ser run")] = False,
    dry_run: Annotated[bool, typer.Option(help="show what would be sent, and send nothing")] = False,
) -> None:
    """Run or sweep a recipe somewhere else; the same again goes on where it stopped."""
    from launch import profile as profiles
    from launch import submit as submitting
    from ser.recipe import load

    found = load(recipe, overrides or [], variant)
    site = profiles.read(profile, to)
    job = submitting.make_job(found, site, until, folds, training, sweep)
    if dry_run:
        typer.echo(submitting.target(str(site.to)).render(job, site), nl=False)
        return
    record = submitting.submit(found, site, job)
    typer.echo(f"submitted {record.name} to {record.target}: {', '.join(record.ids)}")
    typer.echo(f"next: ser status {record.run}, ser logs --follow {record.run}, ser cancel {record.run}")


@verbs.command()
def status(run: RunName, variant: Variant = None, profile: Site = None) -> None:
    """Where a submitted run is; exit code 0 while it waits, works or is done, else 1."""
    from launch import record as records
    from launch import submit as submitting

    record = submitting.find(run, variant, _site(profile))
    state, detail = records.summary(record, submitting.look(record))
    Display().table(
        record.run,
        ["target", "id", "state", "", "submitted"],
        [(record.target, ", ".join(record.ids), state, detail, f"{record.submitted} from {record.host}")],
    )
    raise typer.Exit(0 if state in ("queued", "running", "done") else 1)


@verbs.command()
def logs(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until it ends")] = False,
    variant: Variant = None,
    profile: Site = None,
) -> None:
    """What a submitted run has printed."""
    from launch import submit as submitting

    for text in submitting.logs(submitting.find(run, variant, _site(profile)), follow):
        typer.echo(text, nl=False)


@verbs.command()
def cancel(run: RunName, variant: Variant = None, profile: Site = None) -> None:
    """End a submitted run; what it has committed stays, and submitting it again goes on from there."""
    from launch import submit as submitting

    record = submitting.find(run, variant, _site(profile))
    submitting.cancel(record)
    typer.echo(f"cancelled {record.target} {', '.join(record.ids)}")


def _site(name: str | None) -> "Profile | None":
    from launch import profile as profiles

    return profiles.named(name) if name else None
