"""The `ser` command. Verbs say what to do; values live in the recipe (`key.path=value` overrides them)."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.display import Display
from launch.jobs import verbs
from launch.upkeep import verbs as upkeep
from shards.atomic import raise_if_full
from shards.errors import UserError

app = typer.Typer(
    help="Speech emotion recognition: pack corpora, train teachers, store their targets, distil students, report.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(verbs)
app.add_typer(upkeep)
RecipeName = Annotated[
    str, typer.Argument(help="a recipe file, or the name of one that comes with the package")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides: key.path=value")]
Variant = Annotated[str | None, typer.Option(help="a variant named in the recipe")]


def _run(
    name: str,
    overrides: list[str] | None,
    variant: str | None,
    until: str,
    only: str | None = None,
    fold: str | None = None,
) -> None:
    from ser.recipe import load

    display = Display()
    recipe = load(name, overrides or [], variant)
    from ser.stopping import stopped_by_signals

    try:
        with stopped_by_signals():
            from launch.run import run, table  # slow to import, so only for a recipe that can be read

            if fold is not None:
                from launch.fold import run_fold

                lines = run_fold(recipe, fold, display)
            else:
                lines = run(recipe, display, until, only)
    except KeyboardInterrupt:  # typer would end without a word
        typer.echo("interrupted; run the same command to go on", err=True)
        raise typer.Exit(130) from None
    display.table(f"{recipe.name} ({recipe.address})", ["stage", "made", "kept", "seconds", ""], table(lines))
    if until == "report" and fold is None:
        display.say(f"report: {recipe.address}/report.html")


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    variant: Variant = None,
    until: str = "report",
    fold: Annotated[
        str | None,
        typer.Option(help="trainings and targets of this fold alone, beside other folds' processes"),
    ] = None,
) -> None:
    """Make whatever a recipe still misses, in order, and write its report."""
    _run(recipe, overrides, variant, until, fold=fold)


@app.command()
def train(
    recipe: RecipeName, overrides: Overrides = None, variant: Variant = None, model: str | None = None
) -> None:
    """Train a recipe's teachers (or one model, with what it needs)."""
    _run(recipe, overrides, variant, "distill" if model else "train", model)


@app.command()
def targets(recipe: RecipeName, overrides: Overrides = None, variant: Variant = None) -> None:
    """Store the targets of a recipe's teachers, training them first where needed."""
    _run(recipe, overrides, variant, "targets")


@app.command()
def distill(recipe: RecipeName, overrides: Overrides = None, variant: Variant = None) -> None:
    """Train a recipe's students, with all that they need."""
    _run(recipe, overrides, variant, "distill")


@app.command()
def evaluate(recipe: RecipeName, overrides: Overrides = None, variant: Variant = None) -> None:
    """Score all models of a recipe on their test folds, with intervals (report.json)."""
    _run(recipe, overrides, variant, "evaluate")


@app.command()
def report(recipe: RecipeName, overrides: Overrides = None, variant: Variant = None) -> None:
    """Write report.html and report.json of a recipe, making first what is missing."""
    _run(recipe, overrides, variant, "report")


@app.command()
def sweep(recipe: RecipeName, overrides: Overrides = None, variant: Variant = None) -> None:
    """Search the keys of a recipe's `sweep`, a whole run a trial; the same command goes on where it was stopped."""
    from ser.recipe import load

    display = Display()
    found = load(recipe, overrides or [], variant)
    from ser.stopping import stopped_by_signals

    try:
        with stopped_by_signals():
            from launch.sweep import sweep as search  # slow to import, so only for a recipe that can be read

            search(found, display)
    except KeyboardInterrupt:
        typer.echo("interrupted; run the same command to go on", err=True)
        raise typer.Exit(130) from None


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="a saved model, or the training's folder around it")],
    paths: Annotated[list[str], typer.Argument(help="audio files and folders of them")],
    texts: Annotated[
        Path | None, typer.Option(help="`path<tab>transcript` lines, for models that read")
    ] = None,
    batch_seconds: Annotated[float, typer.Option(help="padded seconds a forward pass")] = 60.0,
    window: Annotated[
        float, typer.Option(help="longer recordings are cut into equal parts of at most this")
    ] = 30.0,
    device: str = "cpu",
) -> None:
    """Emotion of audio files by a trained model: a line of JSON each."""
    import json

    from ser.predict import predict as answers
    from ser.predict import read_texts

    failed = total = 0
    for record in answers(model, paths, read_texts(texts) if texts else None, batch_seconds, window, device):
        typer.echo(json.dumps(record, ensure_ascii=False))
        total, failed = total + 1, failed + ("error" in record)
    if failed:
        typer.echo(f"{failed} of {total} could not be read", err=True)
    raise typer.Exit(1 if failed == total else 0)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="a training's folder, a saved model, or a run directory")],
    to: Annotated[str, typer.Option(help="hf, onnx or safetensors")],
    out: Annotated[
        str | None, typer.Option(help="folder to write; default export-<to> beside the model")
    ] = None,
    model: Annotated[str | None, typer.Option(help="of a run directory: which model")] = None,
) -> None:
    """Write a trained model alone, for transformers, ONNX or `ser predict`, with a card of its licences."""
    from ser.export import export as write

    typer.echo(str(write(run, to, out, model)))


@app.command()
def leak() -> None:
    """Show on EmoDB what it is worth to have heard the test speakers, and how STRICT refuses folds that leak."""
    from launch.leak import demonstrate

    demonstrate(Display())


@app.command()
def pack(
    recipe: Annotated[str | None, typer.Argument(help="a recipe, to pack its dataset")] = None,
    overrides: Overrides = None,
    variant: Variant = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="READER=FOLDER, instead of a recipe; repeatable")
    ] = None,
    out: Annotated[str | None, typer.Option(help="dataset folder or URL, without a recipe")] = None,
    add: Annotated[bool, typer.Option(help="with --corpus: add to the dataset; no shard changes")] = False,
    shard_seconds: Annotated[float | None, typer.Option(help="with --corpus; default 3600")] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="with --corpus: longer utterances are left out; default 120")
    ] = None,
    max_quarantined: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="with --corpus: share of broken utterances that is borne; default 0.01"
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="with --corpus: CPUs; default all")] = None,
    withdraw_speaker: Annotated[
        str | None, typer.Option(help="CORPUS/SPEAKER leaves the dataset at --out")
    ] = None,
    erase: Annotated[bool, typer.Option(help="rewrite the shards of withdrawn speakers at --out")] = False,
) -> None:
    """Pack a recipe's corpora, or corpora by name, into WebDataset shards; withdraw a speaker; erase what was withdrawn."""
    limits = {"max_seconds": max_seconds, "max_quarantined": max_quarantined}
    packing = {"--corpus": corpus, "--add": add, "--shard-seconds": shard_seconds, "--workers": workers}
    packing |= {f"--{name.replace('_', '-')}": value for name, value in limits.items()}
    leaving = {"--withdraw-speaker": withdraw_speaker, "--erase": erase}
    if recipe:
        others = _given({**packing, **leaving, "--out": out})
        if others:
            raise UserError(
                f"a recipe and {', '.join(others)} do not go together",
                where=f"ser pack {recipe}",
                hint="a recipe says where its data lie: override data.path, data.shard_seconds, data.max_seconds, cluster.cpus; or leave it out",
            )
        _run(recipe, overrides, variant, "pack")
        return
    from launch.pack import pack_corpora, withdraw_or_erase

    if variant:
        raise UserError("a variant of which recipe?", hint="ser pack RECIPE --variant NAME")
    if _given(leaving) and _given(packing):
        raise UserError(
            f"{', '.join(_given(leaving))} and {', '.join(_given(packing))} do not go together",
            hint="one call for each",
        )
    if _given(leaving):
        withdraw_or_erase(out, withdraw_speaker, erase, Display())
    elif corpus:
        pack_corpora(corpus, out, add, shard_seconds, workers, Display(), **limits)
    else:
        raise UserError(
            "nothing to pack", hint="ser pack RECIPE, or ser pack --corpus emodb=FOLDER --out DATASET"
        )


def _given(options: dict[str, object]) -> list[str]:
    return [name for name, value in options.items() if value not in (None, False, [])]


@app.command()
def transcribe(
    dataset: Annotated[str, typer.Argument(help="folder or URL of a packed dataset")],
    model: Annotated[str, typer.Option(help="a Whisper checkpoint: hub name or folder")],
    name: Annotated[str | None, typer.Option(help="what it is called in asr:NAME; default its own")] = None,
    batch: Annotated[int, typer.Option(help="utterances at once")] = 8,
    device: str = "cpu",
) -> None:
    """Write a Whisper model's transcripts beside a dataset; models read them with text_from: asr:NAME."""
    from ser.transcribe import transcribe as write

    display = Display()
    with display.bar("transcribe", unit="utt") as bar:
        source = write(dataset, model, name=name, batch=batch, device=device, progress=bar.update)
    display.say(f"transcripts of {source}; models read them with text_from: {source}")


@app.command()
def verify(
    dataset: Annotated[str, typer.Argument(help="folder or URL of a packed dataset")],
    workers: Annotated[int | None, typer.Option(help="CPUs; default all")] = None,
) -> None:
    """Re-read a whole dataset and its targets: every bad shard and key, what was left out, which targets are stale."""
    from launch.pack import verify_dataset

    raise typer.Exit(1 if verify_dataset(dataset, workers, Display()) else 0)


@app.command()
def data(
    dataset: Annotated[str, typer.Argument(help="folder or URL of a packed dataset")],
    who_heard: Annotated[str | None, typer.Option(help="CORPUS/SPEAKER: who has heard this speaker")] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="folder with models, beside the dataset's known runs; repeatable; default runs"),
    ] = None,
    remove_targets: Annotated[
        str | None, typer.Option(help="TEACHER/FINGERPRINT: delete these stored targets or features")
    ] = None,
) -> None:
    """Describe a dataset, list all that has heard a speaker, or delete stale targets."""
    from launch import pack as packs

    display = Display()
    if remove_targets:
        packs.remove_targets(dataset, remove_targets, display)
    elif who_heard:
        default = [path for path in (Path("runs"),) if path.is_dir()]
        packs.list_who_heard(dataset, who_heard, runs or default, display)
    else:
        packs.describe_dataset(dataset, display)


@app.command()
def recipe(name: RecipeName, overrides: Overrides = None, variant: Variant = None) -> None:
    """Print a recipe in full, as it resolves."""
    import yaml

    from ser.recipe import load

    typer.echo(yaml.safe_dump(load(name, overrides or [], variant).dump(), sort_keys=False))


@app.command()
def doctor(mend: Annotated[bool, typer.Option(help="remove what cannot load")] = False) -> None:
    """Check the environment and say what to do."""
    from ser import doctor as checks

    if mend:
        checks.mend()
    findings = list(checks.examine())
    for finding in findings:
        typer.echo(
            f"{'ok  ' if finding.well else 'FAIL'} {finding.check}"
            + ("" if finding.well else f"\n     {finding.advice}")
        )
    raise typer.Exit(0 if all(finding.well for finding in findings) else 1)


def main() -> None:
    """Entry point: a user's mistake is printed without a traceback; a stopped run has its own exit code."""
    from ser.stopping import EXIT_CODE, Stopped

    try:
        try:
            app()
        except OSError as error:
            raise_if_full(error, str(error.filename or ""))
            raise
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except Stopped as stopped:
        typer.echo(str(stopped), err=True)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
