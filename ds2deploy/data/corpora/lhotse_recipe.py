"""Reader of corpora through lhotse's recipes.

The other files of this package read some of these corpora directly, because lhotse's recipes skip
missing files silently or fail at the first damaged one.
"""

from __future__ import annotations

import inspect
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

from lhotse import CutSet, RecordingSet, SupervisionSet, recipes

from ds2deploy.data.corpora.transcript_list import TRAIN, in_part, listed_utterance
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import AudioError, ConfigError, ManifestError


def read_with_lhotse(name: str, folder: Path) -> Iterator[Utterance]:
    """Read a corpus with a recipe of lhotse.

    Args:
        name: name of the recipe, such as `ljspeech`.
        folder: folder of the corpus.

    Raises:
        ConfigError: lhotse has no such recipe.
        ManifestError: the recipe cannot read the corpus.
    """
    recipe = getattr(recipes, f"prepare_{name}", None)
    if recipe is None:
        known = sorted(n.removeprefix("prepare_") for n in dir(recipes) if n.startswith("prepare_"))
        raise ConfigError(f"--layout lhotse:{name}: no such recipe; lhotse has {', '.join(known)}")
    with _logged_warnings() as warnings, tempfile.TemporaryDirectory(prefix="ds2deploy-") as out:
        takes_out = "output_dir" in inspect.signature(recipe).parameters
        try:
            found = list(_sets(recipe(folder, **({"output_dir": out} if takes_out else {}))))
        except Exception as error:  # recipes raise any class
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise ManifestError(
                f"{folder}: lhotse's recipe {name} failed ({reason}); check that the folder "
                "contains this corpus"
            ) from None
        for part, recordings, supervisions in found:
            for cut in CutSet.from_manifests(recordings, supervisions).trim_to_supervisions():
                spoken = cut.supervisions[0]
                audio = Path(cut.recording.sources[0].source)
                utterance = listed_utterance(
                    f"{folder}: {spoken.id}", audio, spoken.text or "", spoken.speaker or "",
                    TRAIN, cut.start, cut.duration,
                )  # fmt: skip
                utterance = in_part(part, utterance) if part else utterance
                if cut.recording.num_channels > 1:
                    several = AudioError(
                        f"{audio}: {cut.recording.num_channels} channels with different words; "
                        "make a file of each channel"
                    )
                    utterance = utterance._replace(error=several)
                yield utterance
    for record in warnings:  # they name the files that the recipe skipped
        message = record.getMessage().partition("\n")[0][:200]
        yield Utterance(folder, "", error=ManifestError(f"{folder}: {message}"))


@contextmanager
def _logged_warnings() -> Iterator[list[logging.LogRecord]]:
    """Collect the warnings that lhotse logs instead of raising them."""
    handler = BufferingHandler(sys.maxsize)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logging.getLogger().removeHandler(handler)


def _sets(found: Any, part: str = "") -> Iterator[tuple[str, RecordingSet, SupervisionSet]]:
    """Find the sets in a recipe's result, at any depth, with their keys as the part's name."""
    if not isinstance(found, dict):
        return
    if isinstance(found.get("recordings"), RecordingSet) and found.get("supervisions"):
        yield part, found["recordings"], found["supervisions"]
        return
    for key, inner in found.items():
        yield from _sets(inner, f"{part}/{key}" if part else str(key))
