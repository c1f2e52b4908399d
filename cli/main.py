"""The `dezky` command: one Typer application, one module per subject."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandbox.stack.layout import DEFAULT_DATA_DIR, DEFAULT_PORT_BASE

PortBase = Annotated[
    int | None,
    typer.Option("--port-base", help=f"First of 100 ports; the running stack's, else {DEFAULT_PORT_BASE}."),
]
DataDir = Annotated[Path, typer.Option("--data-dir", help="Where the embedded stack keeps everything.")]

app = typer.Typer(
    name="dezky",
    help="The Dezky control plane on one machine: start it, look at it, get a token, see it work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
history = typer.Typer(help="Histories of runs.", no_args_is_help=True)
app.add_typer(history, name="history")


@app.command()
def up(
    port_base: Annotated[int, typer.Option("--port-base", help="First of 100 ports.")] = DEFAULT_PORT_BASE,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="`api` or `worker`: you run it yourself.")
    ] = None,
) -> None:
    """Start the whole platform and keep it running until Ctrl-C."""
    from cli.up import run_up
    from runtime.process import run_and_exit

    run_and_exit(run_up(port_base, data_dir, without or []))


@app.command()
def status(
    port_base: PortBase = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Say whether the platform is ready, and where everything is. Exit code 1 if it is not ready."""
    from cli.status import run_status
    from runtime.process import run_and_exit

    run_and_exit(run_status(port_base, data_dir, as_json=as_json))


@app.command()
def token(
    role: Annotated[str, typer.Argument(help="operator, partner or member")],
    partner: Annotated[str, typer.Option("--partner", help="Slug of the partner whose staff logs in.")] = "nordicmsp",
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Slug of the tenant whose admin logs in; the newest if absent.")
    ] = None,
    port_base: PortBase = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print a real access token of the embedded login, as the last line of stdout."""
    from cli.token import run_token
    from runtime.process import run_and_exit

    run_and_exit(run_token(role, partner, tenant, port_base, data_dir))


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="The first act only: a tenant is provisioned.")] = False,
    port_base: PortBase = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """See it work, each claim checked: a tenant made, an outage healed, a parked step resolved, an order canceled."""
    from cli.demo.tour import run_demo
    from runtime.process import run_and_exit

    run_and_exit(run_demo(port_base, data_dir, quick=quick))


@history.command()
def save(
    workflow_id: Annotated[str, typer.Argument(help="The id of the workflow, for example tenant/acme/01M7W67...")],
    run_id: Annotated[str | None, typer.Option("--run-id", help="One run of it; the latest if absent.")] = None,
    to: Annotated[Path | None, typer.Option("--to", help="The new file; named after the workflow if absent.")] = None,
    port_base: PortBase = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Save the history of a run, decrypted, as a file that replay reads. A live one is customer data."""
    from cli.history import run_save
    from runtime.process import run_and_exit

    run_and_exit(run_save(workflow_id, run_id, to, port_base, data_dir))


@app.command()
def replay(
    targets: Annotated[list[str] | None, typer.Argument(help="Workflow ids, or files with histories.")] = None,
    all_open: Annotated[bool, typer.Option("--all-open", help="Every open execution of the namespace.")] = False,
    port_base: PortBase = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Say whether runs fit this code, before it is deployed. Exit code 1 if some do not, 2 if that cannot be said."""
    from cli.replay import run_replay
    from runtime.process import run_and_exit

    run_and_exit(run_replay(targets or [], port_base, data_dir, all_open=all_open))


@app.command()
def api(port_base: PortBase = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Run the API with the settings in the environment, or those of the embedded stack that runs."""
    from cli.product import adopt_stack, run_api

    adopt_stack(port_base, data_dir)
    run_api()


@app.command()
def worker(port_base: PortBase = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Run the worker with the settings in the environment, or those of the embedded stack that runs."""
    from cli.product import adopt_stack, run_worker

    adopt_stack(port_base, data_dir)
    run_worker()


def run() -> None:
    """Be the `dezky` command."""
    app()


if __name__ == "__main__":
    run()
