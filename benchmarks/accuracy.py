r"""Accuracy of decoders: word errors in noise, hot words, and confidence.

    python benchmarks/accuracy.py MODEL TEST --valid VALID --text TEXT [--phrases FILE] [--out DIR]

MODEL is a checkpoint or an artifact, TEST and VALID are manifests of `ds2deploy prepare`, and TEXT
has one sentence per line. White noise is added at the sample rate of the recordings. Language
models are made from TEXT. Weights, confidence scale and hot words are chosen on VALID, so that TEST
is used only once. The spoken digits of the documentation:

    ds2deploy prepare FSDD data/digits --layout fsdd --join 2,6 --join-times 3
    python benchmarks/accuracy.py tests/models/digits.ckpt data/digits/test-joined.jsonl.gz \
      --valid data/digits/valid-joined.jsonl.gz --digit-strings 2000
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jiwer
import lhotse
import msgspec
import numpy as np
from report import Plot, Result, Table, arguments, deliver, progress

import ds2deploy
from ds2deploy.data.cuts import transcript
from ds2deploy.language_models.make import Kind, LanguageModelOptions, make_language_model
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.decoder import decode_batch
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.training.error_analysis import wer_interval, word_errors
from ds2deploy.training.kept_log_probs import KeepingDecoder, KeptTranscript, Utterance, decode_kept
from ds2deploy.training.tuning import Tuning, hypotheses_of, tune, word_confidences, word_error_rate

DIGITS = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"]
CLEAN = "clean"
TUNED_AT_DB = 15
"""Signal-to-noise ratio at which the weights are chosen; they are used for all conditions."""

HOT_COUNT, HOT_WEIGHT = 3, 0.8
BLOCK = 16
BINS, FEWEST = 10, 5


def hear(recognizer: Recognizer, manifest: Path, snr_db: float | None) -> list[Utterance]:
    """Run the network on a manifest with white noise.

    Args:
        recognizer: recogniser whose decoder is `KeepingDecoder`.
        manifest: manifest of utterances with transcripts.
        snr_db: ratio of the power of an utterance to that of the noise, in decibels; None adds no
            noise.
    """
    random = np.random.default_rng(7)
    alphabet = Alphabet(recognizer.description.labels)
    cuts = list(lhotse.CutSet.from_file(manifest))
    sounds: list[FloatArray] = []
    for cut in cuts:
        sound = cut.load_audio()[0].astype(np.float32)
        if snr_db is not None:
            level = np.sqrt(np.mean(sound**2) / 10 ** (snr_db / 10))
            sound = sound + random.normal(0, level, sound.shape).astype(np.float32)
        sounds.append(sound)
    found = recognizer.transcribe(sounds, sample_rate=cuts[0].sampling_rate)
    kept = []
    for cut, one in zip(cuts, found, strict=True):
        assert isinstance(one, KeptTranscript)
        said = alphabet.normalize(transcript(cut))
        kept.append(Utterance(one.log_probs, one.duration, said, one.text))
    return kept


def differences(
    utterances: Sequence[Utterance], settings: DecoderConfig, alphabet: Alphabet, frame_s: float
) -> int:
    """Count texts that differ between single, batched and streaming decoding."""
    decoder = settings(alphabet, frame_s)
    together = [one.text for one in decode_kept(utterances, decoder)]
    count = 0
    for one, text in zip(utterances, together, strict=True):
        length = np.array([len(one.log_probs)])
        alone = decode_batch(decoder, one.log_probs[None], length, [one.duration_s])[0].text
        state = decoder.start()
        for start in range(0, len(one.log_probs), BLOCK):
            decoder.advance([state], [one.log_probs[start : start + BLOCK]])
            decoder.update(state)
        count += not alone == text == decoder.finish(state, one.duration_s).text
    return count


def recall(
    utterances: Sequence[Utterance], texts: Sequence[str], words: set[str]
) -> tuple[int, int, int, int]:
    """Count found, spoken and false hot words, and errors in all other words."""
    found = said = false = others = 0
    for one, text in zip(utterances, texts, strict=True):
        reference, hypothesis = one.reference.split(), text.split()
        said += sum(word in words for word in reference)
        for chunk in jiwer.process_words(one.reference, text).alignments[0]:
            there = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            heard = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "equal":
                found += sum(word in words for word in there)
            else:
                false += sum(word in words for word in heard)
                others += sum(word not in words for word in there)
    return found, said, false, others


def worst_words(utterances: Sequence[Utterance]) -> list[str]:
    """List the words that greedy decoding misses most, relative to their frequency."""
    said: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for one in utterances:
        words = one.reference.split()
        said.update(words)
        for chunk in jiwer.process_words(one.reference, one.greedy).alignments[0]:
            if chunk.type in ("substitute", "delete"):
                missed.update(words[chunk.ref_start_idx : chunk.ref_end_idx])
    often = [word for word, count in said.items() if count >= 5]
    return sorted(often, key=lambda word: -missed[word] / said[word])[:HOT_COUNT]


def calibration(sure: FloatArray, right: FloatArray) -> tuple[float, list[tuple[float, float]]]:
    """Compute the expected calibration error (Guo et al., 2017), and the reliability curve."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    error, curve = 0.0, []
    for at in range(BINS):
        mine = bins == at
        if mine.any():
            error += float(mine.mean()) * abs(float(right[mine].mean() - sure[mine].mean()))
            if mine.sum() >= FEWEST:
                curve.append((float(sure[mine].mean()), float(right[mine].mean())))
    return error, curve


def measure(
    model: Path, test: Path, valid: Path, text: Path, phrases: Sequence[str], snrs_db: Sequence[int]
) -> Result:
    """Choose the settings on the validation data, and measure them once on the test data.

    Args:
        model: checkpoint or artifact.
        test: manifest of the test data.
        valid: manifest of the validation data.
        text: file with the sentences of the language models.
        phrases: closed list of phrases; empty skips it.
        snrs_db: signal-to-noise ratios, in decibels.
    """
    conditions = {CLEAN: None, **{f"{snr} dB": snr for snr in snrs_db}}
    with ds2deploy.load(model, decoder=KeepingDecoder) as recognizer:
        alphabet = Alphabet(recognizer.description.labels)
        frame_s = recognizer.description.frame_s
        progress("recognising the validation data")
        noisy = hear(recognizer, valid, TUNED_AT_DB)
        noisiest = hear(recognizer, valid, min(snrs_db))
        progress("recognising the test data")
        tests = {name: hear(recognizer, test, snr) for name, snr in conditions.items()}
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as folder:
        tunings: dict[str, Tuning] = {}
        kinds: tuple[tuple[str, Kind, int], ...] = (
            ("lexicon and word 3-gram", "words", 3),
            ("character 6-gram", "characters", 6),
        )
        for name, kind, order in kinds:
            progress(f"tuning: {name}")
            lm = Path(folder, f"{kind}.lm")
            make_language_model([text], lm, alphabet, LanguageModelOptions(kind=kind, order=order))
            start = DecoderConfig(lm=str(lm))
            tunings[name] = tune(noisy, alphabet, frame_s, start)
        hot = worst_words(noisiest)
        closed = f"closed list of {len(phrases)}"
        decoders = {"beam": DecoderConfig()} | {name: t.settings for name, t in tunings.items()}
        if phrases:
            decoders[closed] = DecoderConfig(phrases=tuple(phrases))
        rows: dict[str, list[str]] = {"greedy": []}
        data: dict[str, dict[str, object]] = {"wer": {}, "differences": {}, "ece": {}}
        curves: dict[str, list[tuple[float, float]]] = {}
        hot_rows: list[list[str]] = []
        calibrated: list[list[str]] = []
        for condition, utterances in tests.items():
            greedy = [one.greedy for one in utterances]
            rows["greedy"].append(_shown(utterances, greedy))
            data["wer"][f"greedy, {condition}"] = word_error_rate(utterances, greedy)
            for name, settings in decoders.items():
                progress(f"{condition}: {name}")
                found = decode_kept(utterances, settings(alphabet, frame_s))
                texts = [one.text for one in found]
                rows.setdefault(name, []).append(_shown(utterances, texts))
                data["wer"][f"{name}, {condition}"] = word_error_rate(utterances, texts)
                count = differences(utterances, settings, alphabet, frame_s)
                data["differences"][f"{name}, {condition}"] = count
            base = tunings["lexicon and word 3-gram"].settings
            boosted = msgspec.structs.replace(base, hot_words=dict.fromkeys(hot, HOT_WEIGHT))
            for name, settings in (("without", base), ("with", boosted)):
                found = decode_kept(utterances, settings(alphabet, frame_s))
                texts = [one.text for one in found]
                counts = recall(utterances, texts, set(hot))
                shown = [f"{counts[0]} of {counts[1]}", str(counts[2]), str(counts[3])]
                hot_rows.append([condition, name, *shown])
            for name, scale in (("scale 1", 1.0), ("tuned scale", base.confidence_scale)):
                settings = msgspec.structs.replace(base, confidence_scale=scale)
                found = decode_kept(utterances, settings(alphabet, frame_s))
                error, curve = calibration(*word_confidences(utterances, found))
                data["ece"][f"{name}, {condition}"] = error
                calibrated.append([condition, f"{name} ({scale:g})", f"{error:.3f}"])
                if condition != CLEAN:
                    curves[f"{condition}, {name}"] = curve
    return Result(
        name="accuracy",
        title=f"Decoders: {model.name} on {test.name}",
        tables=[
            Table(
                "WER (%), with its 95 % interval over utterances",
                ["", *conditions],
                [[name, *cells] for name, cells in rows.items()],
            ),
            Table(
                f"Hot words {', '.join(hot)} ({HOT_WEIGHT:g} nats a letter)",
                ["", "hot words", "found", "false", "other words wrong"],
                hot_rows,
            ),
            Table(
                "Confidence of words: expected calibration error",
                ["", "confidence", "error"],
                calibrated,
            ),
        ],
        plots=[
            Plot(
                file="accuracy-reliability.png",
                title="How often words of a confidence are right",
                x_label="confidence",
                y_label="share that is right",
                series={"as it should be": [(0.0, 0.0), (1.0, 1.0)], **curves},
            )
        ],
        notes=[
            "Weights are of the validation data at "
            f"{TUNED_AT_DB} dB: "
            + "; ".join(
                f"{name}: lm_weight {t.settings.lm_weight:g}, word_score "
                f"{t.settings.word_score:g}, confidence_scale {t.settings.confidence_scale:g}"
                for name, t in tunings.items()
            )
            + ".",
            "Texts that differ alone, in a batch and in blocks: "
            f"{sum(int(str(count)) for count in data['differences'].values())} of "
            f"{len(data['differences'])} x {len(next(iter(tests.values())))}.",
        ],
        data=dict(data),
    )


def _shown(utterances: Sequence[Utterance], texts: Sequence[str]) -> str:
    low, high = wer_interval(*word_errors(hypotheses_of(utterances, texts)))
    rate = word_error_rate(utterances, texts)
    return f"{100 * rate:.2f} ({100 * low:.1f} to {100 * high:.1f})"


def digit_strings(count: int) -> list[str]:
    """Draw different random strings of two to six digits."""
    random = np.random.default_rng(0)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(random.choice(DIGITS, int(random.integers(2, 7))))] = None
    return list(found)


def main() -> None:
    """Measure, and print or write the result."""
    parser = arguments(__doc__ or "")
    parser.add_argument("model", type=Path, help="checkpoint or artifact")
    parser.add_argument("test", type=Path, help="manifest of the test data")
    parser.add_argument("--valid", type=Path, required=True, help="manifest of the validation data")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument(
        "--text", type=Path, help="text with one sentence per line, for the language models"
    )
    text.add_argument(
        "--digit-strings",
        type=int,
        metavar="COUNT",
        help="make the language models from this many random digit strings",
    )
    parser.add_argument(
        "--phrases", type=Path, help="text with the closed list, one phrase per line"
    )
    parser.add_argument("--snr", default="20,15,10", help="signal-to-noise ratios in dB")
    options = parser.parse_args()
    snrs_db = [int(value) for value in options.snr.split(",")]
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as folder:
        path, phrases = options.text, []
        if options.digit_strings:
            path = Path(folder, "strings")
            path.write_text("\n".join(digit_strings(options.digit_strings)) + "\n")
            # The closed list contains the test transcripts and other strings.
            phrases = _strings_among_others(options.test, 960)
        if options.phrases is not None:
            phrases = options.phrases.read_text().splitlines()
        deliver(
            measure(options.model, options.test, options.valid, path, phrases, snrs_db), options
        )


def _strings_among_others(manifest: Path, count: int) -> list[str]:
    said = (" ".join(transcript(cut).upper().split()) for cut in lhotse.CutSet.from_file(manifest))
    return list(itertools.islice(dict.fromkeys([*said, *digit_strings(count)]), count))


if __name__ == "__main__":
    main()
