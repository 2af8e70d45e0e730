"""The command `ds2deploy doctor`, which lists the runtimes that work on this machine."""

from __future__ import annotations

import typer

from ds2deploy.cli.options import Json
from ds2deploy.output import print_json


def doctor(json: Json = False) -> None:
    """List the runtimes that work here, and how to fix the others.

    With --json, the output also describes the machine, driver, system and packages; attach it to a
    report of a problem.

    Example: ds2deploy doctor
    """
    import msgspec

    from ds2deploy.doctor import examine

    findings = examine()
    if json:
        from ds2deploy.environment import describe_environment

        about = msgspec.to_builtins(describe_environment())
        print_json({"environment": about, "findings": msgspec.to_builtins(findings)})
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "yes" if finding.works else "no "
        typer.echo(f"{mark}  {finding.name:{width}}  {finding.detail}")
        if finding.remedy:
            typer.echo(f"     {'':{width}}  -> {finding.remedy}")
