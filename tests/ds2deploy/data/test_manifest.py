"""Manifests from every source, and joining utterances."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ds2deploy.data.batches import SpeechDataset, training_batches
from ds2deploy.data.cuts import audio_path, join_utterances, read_audio, transcript
from ds2deploy.data.epoch_plan import ProcessBatch
from ds2deploy.data.manifest import read_manifest
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.recipes import load_recipe
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.audio.loading import load_audio
from ds2deploy.runtimes.errors import AlphabetError

ALPHABET = Alphabet("_ABCD ")


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text().strip() for path in folder.glob("*.txt")}


def test_a_folder(tone_corpus: Path, tmp_path: Path):
    manifests = prepare(tone_corpus, tmp_path, ALPHABET, PrepareOptions(valid_share=0.25))[0]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["report.json", "train.jsonl.gz", "valid.jsonl.gz"]
    found = {
        Path(audio_path(cut)).stem: transcript(cut)
        for name in manifests
        for cut in read_manifest(tmp_path / f"{name}.jsonl.gz")
    }
    assert found == texts(tone_corpus)
    assert 4 <= len(manifests["valid"]) <= 20


def test_the_split_does_not_move_when_recordings_come(tone_corpus: Path, tmp_path: Path):
    before = prepare(tone_corpus, tmp_path / "a", ALPHABET, PrepareOptions(valid_share=0.25))[0]
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for path in sorted(tone_corpus.iterdir())[:40]:
        (fewer / path.name).write_bytes(path.read_bytes())
    after = prepare(fewer, tmp_path / "b", ALPHABET, PrepareOptions(valid_share=0.25))[0]

    def names(cuts):
        return {Path(audio_path(cut)).name for cut in cuts}

    assert names(after["valid"]) == names(before["valid"]) & {p.name for p in fewer.iterdir()}


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_manifests_of_deepspeech_pytorch(tone_corpus: Path, tmp_path: Path, kind: str):
    pairs = [(wav, wav.with_suffix(".txt")) for wav in sorted(tone_corpus.glob("*.wav"))]
    manifest = tmp_path / f"train.{kind}"
    if kind == "json":
        samples = [{"wav_path": a.name, "transcript_path": t.name} for a, t in pairs]
        manifest.write_text(json.dumps({"root_path": str(tone_corpus), "samples": samples}))
    else:
        manifest.write_text("".join(f"{a},{t}\n" for a, t in pairs))
    direct = {Path(audio_path(cut)).stem: transcript(cut) for cut in read_manifest(manifest)}
    assert direct == texts(tone_corpus)
    prepared = prepare(manifest, tmp_path / "out", ALPHABET, PrepareOptions(valid_share=0.0))[0]
    assert list(prepared) == ["train"]
    assert len(prepared["train"]) == len(pairs)


def test_a_small_folder_has_both_sides(tone_corpus: Path, tmp_path: Path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(tone_corpus.iterdir())[:4]:
        (few / path.name).write_bytes(path.read_bytes())
    manifests = prepare(few, tmp_path / "out", ALPHABET, PrepareOptions(valid_share=0.01))[0]
    assert {name: len(cuts) for name, cuts in manifests.items()} == {"train": 1, "valid": 1}


def test_characters_without_a_label_are_named(tone_corpus: Path, tmp_path: Path):
    with pytest.raises(AlphabetError, match=r"\.wav: no label for 'D'"):
        prepare(tone_corpus, tmp_path / "out", Alphabet("_ABC "), PrepareOptions(valid_share=0.0))
    assert not (tmp_path / "out").exists()


def test_joined_utterances_sound_like_their_parts(tone_manifests: Path):
    cuts = read_manifest(tone_manifests / "train.jsonl.gz")
    joined = join_utterances(cuts, (2, 3), (0.05, 0.1), seed=4)
    spoken = sorted(" ".join(transcript(cut) for cut in joined).split())
    assert spoken == sorted(" ".join(transcript(cut) for cut in cuts).split())
    for cut in joined:
        parts = [track.cut for track in cut.tracks if hasattr(track.cut, "recording")]
        offsets = [track.offset for track in cut.tracks if hasattr(track.cut, "recording")]
        samples = read_audio(cut, 8000)
        assert len(samples) == pytest.approx(8000 * cut.duration, abs=2)
        for part, offset in zip(parts, offsets, strict=True):
            alone = load_audio(part.recording.sources[0].source, 8000)
            start = round(8000 * offset)
            np.testing.assert_allclose(samples[start : start + len(alone)], alone, atol=1e-4)


def test_joining_repeats_itself_and_changes_with_the_seed(tone_manifests: Path):
    cuts = read_manifest(tone_manifests / "train.jsonl.gz")
    first, again, other = (
        [transcript(cut) for cut in join_utterances(cuts, (1, 4), (0.0, 0.2), seed)]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_every_utterance_once_in_an_epoch(tone_manifests: Path):
    recipe = load_recipe("digits", ["labels=_ABCD ", "data.workers=0", "data.join=[1,1]"])
    cuts = read_manifest(tone_manifests / "train.jsonl.gz")
    orders = []
    for epoch in (0, 1):
        batches = [batch.texts for batch in training_batches(cuts, recipe, epoch)]
        assert max(map(len, batches)) <= recipe.data.batch_size
        seen = [text for batch in batches for text in batch]
        assert sorted(seen) == sorted(transcript(cut) for cut in cuts)
        orders.append(seen)
    assert orders[0] != orders[1]


def test_a_batch(tone_manifests: Path):
    recipe = load_recipe("digits", ["labels=_ABCD ", "features.sample_rate=8000"])
    cuts = read_manifest(tone_manifests / "train.jsonl.gz").subset(first=3)
    batch = SpeechDataset(recipe, augment=False)[ProcessBatch(cuts, 1.0)]
    frames = [cut.recording.num_samples // 80 + 1 for cut in cuts]
    assert batch.lengths.tolist() == frames
    assert batch.features.shape == (3, 1, 81, max(frames))
    assert batch.target_lengths.tolist() == [len(transcript(cut)) for cut in cuts]
    labels = batch.targets[: batch.target_lengths[0]].tolist()
    assert ALPHABET.decode(labels) == batch.texts[0] == transcript(next(iter(cuts)))


def test_augmentation_is_seeded_by_utterance_and_epoch(tone_manifests: Path):
    recipe = load_recipe("digits", ["labels=_ABCD ", "features.sample_rate=8000"])
    cuts = read_manifest(tone_manifests / "train.jsonl.gz").subset(first=2)
    plain = SpeechDataset(recipe, augment=False)[ProcessBatch(cuts, 1.0)].features
    first = SpeechDataset(recipe, augment=True, epoch=0)[ProcessBatch(cuts, 1.0)].features
    again = SpeechDataset(recipe, augment=True, epoch=0)[ProcessBatch(cuts, 1.0)].features
    later = SpeechDataset(recipe, augment=True, epoch=1)[ProcessBatch(cuts, 1.0)].features
    assert first.equal(again)
    assert first.shape != plain.shape or not first.equal(plain)
    assert first.shape != later.shape or not first.equal(later)


def test_the_digit_data_set(digit_strings: Path):
    manifests = {
        path.name.partition(".")[0]: read_manifest(path)
        for path in digit_strings.parent.glob("*.jsonl.gz")
    }
    counts = {name: len(cuts) for name, cuts in manifests.items()}
    assert (counts["train"], counts["valid"], counts["test"]) == (1600, 200, 200)
    strings = [transcript(cut).split() for cut in manifests["test-joined"]]
    assert sum(map(len, strings)) == 600
    assert {2, 6} <= set(map(len, strings)) <= {2, 3, 4, 5, 6}
    files = {Path(audio_path(cut)).stem.rsplit("_")[-1] for cut in manifests["test"]}
    assert files == {"0", "1", "2", "3", "4"}
