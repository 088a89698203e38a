"""The commands. Each body imports what it needs, so that ``mergegraph --help`` answers at once."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergegraph.errors import MergeGraphError, OutputError, PlanError, did_you_mean
from mergegraph.tensorspec import parse_bytes
from mergegraph.version import VERSION

if TYPE_CHECKING:
    from mergegraph.engine import Compiled

GRAPH_FORMATS = ("html", "svg", "dot", "graphml")
_USAGE = 2
_INTERRUPTED = 130

app = typer.Typer(
    name="mergegraph",
    help="Merge model checkpoints, and make mixtures of experts, in bounded memory at disk speed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: quicker, and not folded into boxes when piped
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Progress(StrEnum):
    """How ``run`` tells what it is doing."""

    AUTO = "auto"
    JSON = "json"
    NONE = "none"


class Layout(StrEnum):
    """How experts are written."""

    PER_EXPERT = "per-expert"
    STACKED = "stacked"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mergegraph {VERSION}")
        raise typer.Exit


def _size(text: str) -> str:
    try:
        parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def _size_or_none(text: str | None) -> str | None:
    return None if text is None else _size(text)


def _drawable(file: Path | None) -> Path | None:
    if file is not None and file.suffix.removeprefix(".").lower() not in GRAPH_FORMATS:
        endings = ", ".join(f".{ending}" for ending in GRAPH_FORMATS)
        raise typer.BadParameter(f"{file} must end in one of {endings}")
    return file


PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (YAML), or the lock file of one.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda or cuda:0,1.")]
VramOption = Annotated[
    str | None,
    typer.Option(callback=_size_or_none, help="Most memory to use on each GPU; default: most of it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]


@app.callback()
def _options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", hidden=True, envvar="MERGEGRAPH_DEBUG")] = False,
) -> None:
    ctx.obj = debug


@contextmanager
def _reporting(
    ctx: typer.Context, plan: Path | None = None, interrupted: str = "interrupted"
) -> Iterator[None]:
    """Turn what mergegraph raises on purpose into a message on stderr and an exit code."""
    try:
        yield
    except MergeGraphError as error:
        if ctx.obj:
            raise
        from mergegraph.cli.render import error_lines

        for line in error_lines(error, str(plan) if plan else None):
            typer.echo(line, err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        if ctx.obj:
            raise
        typer.echo(f"\n{interrupted}", err=True)
        raise typer.Exit(_INTERRUPTED) from None


@app.command()
def run(
    ctx: typer.Context,
    plan: PlanArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Directory of the result.")],
    memory: Annotated[str, typer.Option(callback=_size, help="Most working memory to use.")] = "1GiB",
    threads: Annotated[int | None, typer.Option(min=1, help="Worker threads; default: all cores.")] = None,
    device: DeviceOption = "auto",
    vram: VramOption = None,
    shard_size: Annotated[str, typer.Option(callback=_size, help="Most bytes in one file.")] = "5GB",
    seed: Annotated[int | None, typer.Option(help="Seed of methods that draw at random.")] = None,
    expert_layout: Annotated[
        Layout | None, typer.Option(help="How experts are written; default: see the documentation.")
    ] = None,
    progress: Annotated[Progress, typer.Option(help="How to tell what it is doing.")] = Progress.AUTO,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in OUT.")] = False,
) -> None:
    """Run a plan: read the inputs, write a complete checkpoint to OUT.

    Nothing appears in OUT before everything is written. An interrupted run goes on when the same
    command is given again.
    """
    hint = "interrupted: what is finished is kept, and the same command continues the run"
    with _reporting(ctx, plan, hint):
        options = {"memory": memory, "threads": threads, "shard_size": shard_size, "seed": seed}
        layout = None if expert_layout is None else expert_layout.value
        _run(plan, out, progress, device=device, vram=vram, force=force, expert_layout=layout, **options)


def _run(plan: Any, out: Path, mode: Progress, **options: Any) -> None:
    from mergegraph import engine
    from mergegraph.cli.mixture_view import show_routers
    from mergegraph.cli.progress import make_watcher
    from mergegraph.cli.render import make_console, show_report

    with make_watcher(mode.value) as watcher:
        try:
            report = engine.run(plan, out, on_event=watcher, **options)
        except MergeGraphError as error:
            watcher.failed(error)
            raise
    if mode is not Progress.JSON:
        if report.routers is not None:
            show_routers(make_console(), report.routers)
        show_report(make_console(), report)


@app.command("plan")
def plan_command(
    ctx: typer.Context,
    plan: PlanArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print; write no lock file.")] = False,
    as_json: JsonOption = False,
    explain: Annotated[
        str | None, typer.Option(metavar="TENSOR", help="Print how one output tensor is computed.")
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=_drawable, help="Draw it: .html, .svg, .dot or .graphml."),
    ] = None,
    device: DeviceOption = "auto",
    vram: VramOption = None,
) -> None:
    """Show what a run of PLAN would do, from file headers alone, and write PLAN.lock.json.

    All problems of the plan are reported at once.
    """
    with _reporting(ctx, plan):
        from mergegraph import engine
        from mergegraph.plan import LOCK_SUFFIX

        try:
            compiled = engine.compile_plan(plan, device=device, vram=vram)
            explanation = None if explain is None else engine.explain(compiled, explain)
        except PlanError as error:
            if not as_json or ctx.obj:
                raise
            _print_json({"problems": [problem.as_dict() for problem in error.problems]})
            raise typer.Exit(error.exit_code) from None
        _show(compiled, plan, as_json, explanation)
        if graph is not None:
            _draw(compiled, graph, plan.name)
        if not dry_run and not plan.name.endswith(LOCK_SUFFIX):
            written = engine.write_lock(compiled, plan.with_name(plan.name + LOCK_SUFFIX))
            typer.echo(f"wrote {written}", err=True)


def _show(compiled: Compiled, plan: Path, as_json: bool, explanation: str | None) -> None:
    if as_json:
        summary = compiled.summary()
        _print_json(summary if explanation is None else {**summary, "explain": explanation})
    elif explanation is not None:
        typer.echo(explanation)
    else:
        from mergegraph.cli.plan_view import show_plan
        from mergegraph.cli.render import make_console

        show_plan(make_console(), compiled.summary(), plan.name)


def _draw(compiled: Compiled, file: Path, title: str) -> None:
    from mergegraph.graph.draw import FORMATS

    text = FORMATS[file.suffix.removeprefix(".").lower()](compiled.graph, title, compiled.labels)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}") from error
    typer.echo(f"drew {file}", err=True)


def _print_json(data: object) -> None:
    typer.echo(json.dumps(data, indent=2, default=str))


@app.command()
def inspect(
    ctx: typer.Context,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A directory, a safetensors file, or a hub id.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what is in a checkpoint, from file headers alone."""
    with _reporting(ctx):
        from mergegraph import engine

        facts = engine.inspect(checkpoint)
        if as_json:
            return _print_json(facts)
        from mergegraph.cli.info_view import show_checkpoint
        from mergegraph.cli.render import make_console

        show_checkpoint(make_console(), facts)


@app.command()
def methods(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method, in full.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the merge methods, or describe one: formula, parameters, reference, an example."""
    with _reporting(ctx):
        from mergegraph.cli.info_view import method_facts, show_method, show_methods
        from mergegraph.cli.render import make_console
        from mergegraph.methods import all_methods

        known = all_methods()
        if name is None:
            if as_json:
                return _print_json([method_facts(method) for method in known.values()])
            return show_methods(make_console(), known)
        if name not in known:
            hint = did_you_mean(name, known) or f"the methods are {', '.join(known)}"
            typer.echo(f"error: there is no merge method {name!r}\n    → {hint}", err=True)
            raise typer.Exit(_USAGE)
        if as_json:
            return _print_json(method_facts(known[name]))
        show_method(make_console(), known[name])


@app.command()
def demo(
    ctx: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where to put the models and the results.")
    ] = Path("mergegraph-demo"),
) -> None:
    """Make three small checkpoints and merge them twice, showing every step."""
    with _reporting(ctx):
        from mergegraph import engine
        from mergegraph.cli.plan_view import show_plan
        from mergegraph.cli.render import make_console, say
        from mergegraph.testing import prepare_demo

        console = make_console()
        say(console, f"Making three small checkpoints in {directory}{os.sep}")
        for plan in prepare_demo(directory):
            out = directory / f"merged-{plan.stem}"
            console.print()
            console.rule(f"mergegraph plan --dry-run {plan}", align="left")
            compiled = engine.compile_plan(plan)
            show_plan(console, compiled.summary(), plan.name)
            console.print()
            console.rule(f"mergegraph run {plan} -o {out}", align="left")
            # The models are new each time, so what an earlier demo left is of no use.
            _run(compiled, out, Progress.AUTO, force=True)


def main() -> None:
    """Run the command line."""
    # Commands build much and leave little garbage: it is looked for seldom, and not on the way out.
    gc.set_threshold(100_000, 50, 100)
    # numpy's linear algebra is not used, and its threads would spin beside those that merge.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app(prog_name="mergegraph")
    finally:
        gc.freeze()
