"""Preview of augmentation: recordings before and after it, as audio and as plots."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import soundfile
from lhotse.cut import Cut

from ds2deploy.config import AugmentConfig, Recipe
from ds2deploy.data.augmentation import NEUTRAL, augment_audio, check_noise, mask_features
from ds2deploy.data.cuts import read_audio
from ds2deploy.data.plots import spectrogram_figure, write_png
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray
from ds2deploy.runtimes.files import whole_file

SECTIONS = {
    "speed": ("speed",),
    "tempo": ("tempo",),
    "room": ("room_rt60_s", "room_share"),
    "gain": ("gain_db",),
    "noise": ("noise_snr_db", "noise_folder", "noise_share", "noise_music_share"),
    "band": ("band_hz", "band_share"),
    "masks": ("frequency_masks", "frequency_mask_bins", "time_masks", "time_mask_frames"),
}
"""Parts of `augment` in the order of their application, with their keys."""

SHARED = ("room", "noise", "band")
"""Parts that are applied to a share of the utterances only, `augment.PART_share`."""


def write_preview(cuts: Sequence[Cut], recipe: Recipe, out: Path, seed: int = 0) -> list[Path]:
    """Write utterances before augmentation, after each part of it, and after all parts.

    Args:
        cuts: utterances.
        recipe: recipe with the augmentation and the sample rate.
        out: folder for the files: a WAV and a PNG of each version, but only a PNG for masks.
        seed: seed of the augmentation.

    Returns:
        Paths of the files.

    Raises:
        ConfigError: the recipe has no augmentation.
        MissingFileError, AudioError: an utterance or a noise recording cannot be read.
        RuntimeUnavailableError: matplotlib is not installed.
    """
    check_noise(recipe.augment)
    shown = sections_on(recipe.augment)
    if not shown:
        raise ConfigError(
            "the recipe has no augmentation; turn some on, such as --set 'augment.speed=[0.9,1.1]'"
        )
    written = []
    for cut in cuts:
        name = re.sub(r"[^\w.-]", "_", cut.id)
        for label, config in {"0-before": NEUTRAL, **shown}.items():
            # Each part draws the same values, whichever other parts are on.
            random = np.random.default_rng((seed, zlib.crc32(cut.id.encode())))
            written += _write(cut, recipe, config, random, out / f"{name}.{label}")
    return written


def sections_on(augment: AugmentConfig) -> dict[str, AugmentConfig]:
    """Make a config for each part that is on, and one for all parts together."""
    found: dict[str, AugmentConfig] = {}
    for number, (section, keys) in enumerate(SECTIONS.items(), start=1):
        values: dict[str, Any] = {key: getattr(augment, key) for key in keys}
        alone = msgspec.structs.replace(NEUTRAL, **values)
        if _changes(alone):
            if section in SHARED:  # applied to every utterance of a preview
                alone = msgspec.structs.replace(alone, **{f"{section}_share": 1.0})
            found[f"{number}-{section}"] = alone
    return found | ({"9-all": augment} if found else {})


def _changes(config: AugmentConfig) -> bool:
    keys = (
        "speed", "tempo", "room_rt60_s", "gain_db", "noise_snr_db", "band_hz", "frequency_masks",
        "time_masks",
    )  # fmt: skip
    return any(getattr(config, key) != getattr(NEUTRAL, key) for key in keys)


def _write(
    cut: Cut, recipe: Recipe, config: AugmentConfig, random: np.random.Generator, stem: Path
) -> list[Path]:
    rate = recipe.features.sample_rate
    samples = augment_audio(read_audio(cut, rate), rate, config, random)
    plain = msgspec.structs.replace(recipe.features, normalize="utterance", mean=None)
    extract = FeatureExtractor(msgspec.structs.replace(plain, deviation=None))
    features = mask_features(extract(samples), config, random)
    written = [stem.with_name(f"{stem.name}.png")]
    write_png(spectrogram_figure(stem.name, features, recipe.features), written[0])
    if not stem.name.endswith("masks"):
        written.append(stem.with_name(f"{stem.name}.wav"))
        _write_wav(written[1], samples, rate)
    return written


def _write_wav(path: Path, samples: FloatArray, sample_rate: int) -> None:
    """Write float samples, so that gain beyond full scale is not clipped, as in training."""
    with whole_file(path) as temporary:
        soundfile.write(temporary, samples, sample_rate, subtype="FLOAT")
