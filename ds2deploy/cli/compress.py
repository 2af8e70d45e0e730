"""`ds2deploy compress`: a smaller checkpoint from a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds2deploy.cli.options import Json, argument, option
from ds2deploy.heartbeat import status
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ConfigError, require

if TYPE_CHECKING:
    from ds2deploy.compression.compress import CompressionReport

OUT_HELP = "Checkpoint to write; must not exist."
ENERGY_HELP = "Share of every layer's energy to keep, above 0 and at most 1."
SPEED_HELP = "Multiply-adds before, divided by those after; above 1."
METHOD_HELP = (
    "Way to save: units (fewer maps and units), rank (input weights as two factors), or both."
)


def compress(
    checkpoint: Annotated[Path, argument("CHECKPOINT", "Checkpoint of a trained network.")],
    out: Annotated[Path, option("FILE", OUT_HELP)],
    energy: Annotated[float | None, option("SHARE", ENERGY_HELP)] = None,
    speed: Annotated[float | None, option("FACTOR", SPEED_HELP)] = None,
    method: Annotated[str, option("NAME", METHOD_HELP)] = "both",
    json: Json = False,
) -> None:
    """Make a trained network smaller.

    Give either --energy or --speed. Then train the result further, with the recipe keys
    training.start and training.teacher.

    Example: ds2deploy compress runs/mine/best.ckpt --out small.ckpt --speed 2
    """
    require("torch", "train")
    from ds2deploy.compression.compress import compress as run

    if method not in ("units", "rank", "both"):
        raise ConfigError(f"--method {method}: expected units, rank or both")
    with status(f"compressing {checkpoint}"):
        report = run(checkpoint, out, energy=energy, speed=speed, method=method)  # type: ignore[arg-type]
    if json:
        print_json(report)
    else:
        _print_report(report)


def _print_report(report: CompressionReport) -> None:
    for layer in report.layers:
        each = [f"{count / 1e6:>8.1f}" for count in layer.multiply_adds]
        sizes = f"{layer.size[0]} -> {layer.size[1]}"
        typer.echo(f"{layer.name:<10} {sizes:<36} {' -> '.join(each)} M multiply-adds/s")
    before, after = (count / 1e6 for count in report.multiply_adds)
    typer.echo(
        f"{before:.1f} -> {after:.1f} M multiply-adds for a second of audio, "
        f"{report.speed:.2f} times fewer"
    )
    sizes_mb = [size / 1e6 for size in report.bytes]
    typer.echo(
        f"{report.file}  {sizes_mb[0]:.2f} -> {sizes_mb[1]:.2f} MB, "
        f"{report.parameters[0]:,} -> {report.parameters[1]:,} parameters"
    )
