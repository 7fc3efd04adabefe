"""`selfvit audit`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from . import options


def audit(
    checkpoint: options.CheckpointFolder,
    as_json: options.Json = False,
) -> None:
    """Find silent faults in a checkpoint of transformers, timm or selfvit.

    The exit code is 1 if there are any.
    """
    from ..conversion.audit.audit import audit as audit_checkpoint

    result = audit_checkpoint(checkpoint)
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2, ensure_ascii=False))
    else:
        for finding in result.findings:
            typer.echo(f"{finding.fault}: {finding.what}.")
            typer.echo(f"  why it matters: {finding.why}.")
            typer.echo(f"  what to do: {finding.fix}.")
        for note in result.notes:
            typer.echo(f"note: {note}")
        if not result.findings:
            typer.echo(f"{checkpoint}: no faults found ({result.kind}).")
    if result.findings:
        raise typer.Exit(1)
