"""``rtm adapters``: what was distilled, and what serves."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rag_tuned_memory.adapters import AdapterRegistry
from rag_tuned_memory.cli.options import Json, Namespace, open_memory
from rag_tuned_memory.cli.output import console, print_json, when
from rag_tuned_memory.memory.wiring import load_settings
from rag_tuned_memory.models import locate
from rag_tuned_memory.trajectory import validate_namespace

app = typer.Typer(no_args_is_help=True, help="What was distilled, and what serves.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="An adapter's name, such as alice-v7.")]
Reason = Annotated[str, typer.Option(help="Why; it is logged.")]


class For(StrEnum):
    """A server."""

    TGI = "tgi"
    VLLM = "vllm"


def _registry() -> AdapterRegistry:
    return AdapterRegistry(load_settings().adapters_dir)


@app.command("list")
def list_(namespace: Namespace, json: Json = False) -> None:
    """All versions with their states."""
    registry = _registry()
    found = [(one, registry.state(one.name)) for one in registry.list(validate_namespace(namespace))]
    if json:
        print_json(
            [
                {
                    "name": one.name,
                    "state": state,
                    "created_at": one.created_at,
                    "trajectories": len(one.learned),
                    "metrics": one.metrics,
                    "accepted": one.decision.accepted,
                }
                for one, state in found
            ]
        )
        return
    from rich.table import Table

    table = Table()
    for column in ("name", "state", "made", "episodes", "local", "global", "gate"):
        table.add_column(column)
    for one, state in found:
        shares = [_share(one.metrics.get(name)) for name in ("local_recall", "global_recall")]
        gate = "accepted" if one.decision.accepted else "rejected"
        table.add_row(one.name, state.value, when(one.created_at), str(len(one.learned)), *shares, gate)
    console().print(table if found else f"no adapters in namespace {namespace!r}; make one with `rtm distil`")


@app.command()
def show(name: Name, namespace: Namespace, json: Json = False) -> None:
    """One version: lineage, figures, decision, history."""
    registry = _registry()
    manifest = registry.get(name, namespace=namespace)
    history, folder = registry.history(name, namespace=namespace), registry.files_of(name, namespace=namespace)
    if json:
        print_json({**manifest.model_dump(mode="json"), "history": history, "path": str(folder)})
        return
    out = console()
    out.print(f"{name}: {history[-1].new.value}, made {when(manifest.created_at)}")
    out.print(f"base {manifest.base_model}, {len(manifest.learned)} trajectories, {manifest.train.tokens:,} tokens")
    for verdict in manifest.decision.reasons:
        out.print(f"  {'passed' if verdict.passed else 'MISSED'}  {verdict.sentence}")
    for line in history:
        change = f"{line.old} → {line.new}" if line.old != line.new else "remark"
        out.print(f"  {when(line.time)}  {change}: {line.reason} ({line.actor})")
    out.print(f"files and report: {folder}", soft_wrap=True)


@app.command()
def promote(name: Name, namespace: Namespace, reason: Reason = "promoted by hand", json: Json = False) -> None:
    """Let an accepted or retired version serve."""
    with open_memory(namespace) as memory:
        memory.promote(name, reason)
    if json:
        print_json({"name": name, "state": "serving"})
    else:
        console().print(f"{name} serves")


@app.command()
def rollback(namespace: Namespace, reason: Reason = "rolled back by hand", json: Json = False) -> None:
    """Let the version serve that served before the present one."""
    manifest = _registry().rollback(namespace, reason)
    if json:
        print_json({"name": manifest.name, "state": "serving"})
    else:
        console().print(f"{manifest.name} serves again")


@app.command()
def export(
    name: Name,
    namespace: Namespace,
    server: Annotated[For, typer.Option("--for", help="The server that is to serve it.")],
    to: Annotated[Path, typer.Option(help="A folder that the server can read.")],
    base: Annotated[
        bool | None, typer.Option("--base/--no-base", help="Write the base model too. [default: for tgi, if missing]")
    ] = None,
    base_name: Annotated[
        str | None, typer.Option(help="What the server is started with as its model, if not the exported folder.")
    ] = None,
    mount: Annotated[str | None, typer.Option(help="Where the server sees the folder, if elsewhere.")] = None,
    max_lora_rank: Annotated[int | None, typer.Option(help="The vLLM server's, if it is fixed.")] = None,
    json: Json = False,
) -> None:
    """Write a version for a server, as an immutable folder, and say how the server is started."""
    from rag_tuned_memory.adapters.exporting import export_adapter
    from rag_tuned_memory.adapters.launching import launch

    settings = load_settings()
    exported = export_adapter(
        _registry(),
        name,
        server.value,
        to,
        locate(settings.model, settings.cache),
        namespace=namespace,
        write_base=base,
        base_name=base_name,
        mount=mount,
        max_lora_rank=settings.max_lora_rank if max_lora_rank is None else max_lora_rank,
    )
    start = launch(exported)
    if json:
        print_json(
            {
                "name": name,
                "server": exported.server,
                "path": str(exported.folder),
                "base_path": str(exported.base_folder),
                "server_path": exported.server_path,
                "server_base": exported.server_base,
                "rank": exported.rank,
                "written": [str(folder) for folder in exported.written],
                "environment": start.environment,
                "command": start.command,
                "load": start.load,
            }
        )
        return
    out = console()
    for folder in exported.written:
        out.print(f"written: {folder}", soft_wrap=True)
    if not exported.written:
        out.print(f"was there already: {exported.folder}", soft_wrap=True)
    out.print(f"start the server with:\n  {start.shell}", soft_wrap=True)
    if start.load:
        out.print(f"or tell a running one:\n  {start.load_shell}", soft_wrap=True)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
