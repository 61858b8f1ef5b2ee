"""`flashslm data`: what a prepared data set holds, and how a trainer sees it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from flashslm.cli.options import HOME, RUNS, HomeOption, JsonOption, RunsOption
from flashslm.cli.output import AS_IT_IS, print_whole, show

if TYPE_CHECKING:
    from flashslm.data.files import Files
    from flashslm.infra.storage.object_store import Manifest

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A prepared data set: its directory, a run, a manifest, or s3://BUCKET/cas/AB/SHA256."
    ),
]
SplitOption = Annotated[str, typer.Option("--split", help="train, validation or test.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Another seed shows other text.")]

data_app = typer.Typer(no_args_is_help=True, help="What is in a prepared data set.")


@data_app.command("stats")
def data_stats(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="As for `sample`; several are compared.")],
    runs: RunsOption = RUNS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Count documents, bytes and tokens of every split, and what was left out as duplicate or unreadable."""
    from flashslm.data.inspection import split_numbers, splits, summary

    found = []
    for source in sources:
        dataset = opened_dataset(source, runs, home)
        numbers = {split: split_numbers(dataset, split)._asdict() for split in splits(dataset)}
        found.append({"name": source, **summary(dataset), "splits": numbers})
    if as_json:
        print(json.dumps({"datasets": found}))
        return
    for facts in found:
        tables = facts.pop("splits")
        del facts["bytes_per_token"]  # that of the validation split, which its column has
        show(facts, as_json)
        table = Table("", *(Column(split, justify="right") for split in tables), box=None, pad_edge=False)
        for name in next(iter(tables.values())):
            row = [values[name] for values in tables.values()]
            table.add_row(name, *(f"{n:,.2f}" if isinstance(n, float) else f"{n:,}" for n in row))
        print_whole(table)


@data_app.command("sample")
def data_sample(
    source: SourceArgument,
    split: SplitOption = "train",
    count: Annotated[int, typer.Option("--count", min=1, help="Documents to show.")] = 3,
    characters: Annotated[int, typer.Option("--characters", min=1, help="Of each document at most.")] = 500,
    seed: SeedOption = 0,
    runs: RunsOption = RUNS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Show documents of a split, chosen at random."""
    from flashslm.data.inspection import sample_documents

    chosen = sample_documents(opened_dataset(source, runs, home, split), split, count, seed)
    found = [document._replace(text=document.text[:characters]) for document in chosen]
    if as_json:
        print(json.dumps({"documents": [document._asdict() for document in found]}))
        return
    for document in found:
        head = f"document {document.number:,}: {document.tokens:,} tokens, {document.bytes:,} bytes"
        _show_part(head, document.text)


@data_app.command("tokens")
def data_tokens(  # noqa: PLR0913 - one parameter an option
    source: SourceArgument,
    split: SplitOption = "train",
    sequence_length: Annotated[int, typer.Option(min=8, help="As training.sequence_length.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="As training.micro_batch_size (or batch_size).")] = 2,
    step: Annotated[int, typer.Option(min=0, help="Number of the batch, counted from 0.")] = 0,
    seed: SeedOption = 0,
    runs: RunsOption = RUNS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Show the windows of a training batch as the trainer sees them, with the borders of documents."""
    from flashslm.data.inspection import tokenizer_of, windows
    from flashslm.data.loader import TokenLoader

    dataset = opened_dataset(source, runs, home, split)
    loader = TokenLoader(dataset, split, sequence_length, batch_size, seed)
    rows = windows(loader, tokenizer_of(dataset), step)
    if as_json:
        print(json.dumps({"rows": [[part._asdict() for part in row] for row in rows]}))
        return
    for number, row in enumerate(rows):
        for part in row:
            where = "begins" if part.begins else "continues"
            _show_part(f"row {number}, document {part.document:,} {where}, {part.tokens:,} tokens", part.text)


def opened_dataset(source: str, runs: Path, home: Path, split: str = "") -> "Files":
    """The files of a prepared data set; of one in the store they are fetched into the home's cache when they are read.

    Raises ValueError for what is not a data set, or one without that split.
    """
    from flashslm.data.files import LocalFiles
    from flashslm.data.inspection import splits, summary
    from flashslm.infra.stack.services import existing_settings
    from flashslm.infra.storage.object_store import ObjectStore
    from flashslm.infra.storage.streamed_tree import StreamedTree

    files: Files = LocalFiles(Path(source))
    if not Path(source).is_dir() or (Path(source) / "artifacts").is_dir():
        manifest, settings = _manifest(source, runs), existing_settings(home)
        cache = home / "trees" / "files"
        files = StreamedTree(ObjectStore(settings), manifest, cache, settings.data_cache_bytes)
    summary(files)
    if split and split not in splits(files):
        raise ValueError(f"'{source}' has no split '{split}': it has {', '.join(splits(files))}")
    return files


def _manifest(source: str, runs: Path) -> "Manifest":
    from flashslm.infra.storage.object_store import Manifest

    if source.startswith("s3://"):
        return Manifest.at(source, "dataset")
    candidates = [Path(source), *(root / "artifacts" / "dataset.json" for root in (Path(source), runs / source))]
    if found := next((path for path in candidates if path.is_file()), None):
        return Manifest.read(found)
    raise ValueError(
        f"'{source}' is not a data set: give a directory that prepare_data made, a run in '{runs}', the manifest of a "
        "data set, or its address s3://BUCKET/cas/AB/SHA256"
    )


def _show_part(head: str, text: str) -> None:
    out = Console()
    out.print(f"── {head}", style="bold", **AS_IT_IS)
    out.print(text, **AS_IT_IS)
