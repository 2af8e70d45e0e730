"""Draw the pictures of docs/concepts.md: `python docs/scripts/pictures.py docs/images`.

Every number in them is computed from `runtimes/geometry.py`, the feature settings and a recipe.
"""

from __future__ import annotations

import sys
from pathlib import Path

from network_picture import draw_network
from stream_picture import draw_stream

from ds2deploy.recipes import load_recipe
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.features import FeatureConfig

SECONDS = 10
"""Duration of the utterance in the picture of the network."""


def draw_all() -> dict[str, str]:
    """Draw both pictures; returns the SVG documents by file name."""
    streaming = load_recipe("digits-streaming")
    return {
        "network.svg": draw_network(ModelShape(), FeatureConfig(), SECONDS),
        "stream.svg": draw_stream(streaming.model, streaming.features),
    }


def main(folder: str) -> None:
    """Write the pictures to a folder."""
    for name, picture in draw_all().items():
        (Path(folder) / name).write_text(picture, "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
