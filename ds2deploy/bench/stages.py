"""Recognition of a batch stage by stage, for several models in turns, and their comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from ds2deploy.bench.plan import ON_TORCH, Case
from ds2deploy.bench.timing import Latency, Ratio, latency, ratio, take_turns
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.decoder import MakeDecoder, decode_batch
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray, IntArray
from ds2deploy.runtimes.session import Session, prepare_sound

STAGES = ("features", "network", "decoding")

BEAM_SEARCH = DecoderConfig()
"""Default settings of the measured beam search: 64 hypotheses, no language model."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """Measurement of a model on a runtime with one batch.

    If the model takes samples, feature extraction is part of the network.

    Attributes:
        model: name of the model.
        runtime: name of the runtime, see `plan.NAMES`.
        batch: number of utterances at a time.
        audio_s: duration of each utterance, in seconds.
        total: time from samples to text.
        features: time for computing the spectrograms and padding them to a batch.
        network: time of a run of the session, including copies to and from the device.
        decoding: time of greedy decoding, from log-probabilities to text with timestamps.
        beam_search: time of the beam search, which is not part of the total.
        rounds_s: times of every round, by stage and in total, in seconds.
        real_time_factor: computing time per second of audio, from the median total.
        throughput: seconds of audio per second of computing, the inverse.
        total_ratio: speed from samples to text as a multiple of the reference; None if the
            reference does not accept this batch.
        network_ratio: speed of the network alone as a multiple of the reference; None if the
            reference does not accept this batch.
    """

    model: str
    runtime: str
    batch: int
    audio_s: float
    total: Latency
    features: Latency
    network: Latency
    decoding: Latency
    beam_search: Latency
    rounds_s: dict[str, list[float]]
    real_time_factor: float
    throughput: float
    total_ratio: Ratio | None
    network_ratio: Ratio | None

    @property
    def name(self) -> str:
        """Model and runtime."""
        return f"{self.model} on {self.runtime}"

    @property
    def exported(self) -> bool:
        """True for a model that ran without torch."""
        return self.runtime not in ON_TORCH


class StagedRun:
    """Run of a session on a whole batch of any size, with the time of each stage.

    `Recognizer.transcribe` would split a large batch, see `pipeline.batch_limits`.

    Args:
        session: session of the model on its runtime.
        waveforms: utterances, (samples,) float32 at the model's rate.
        beam_search: function that makes the decoder of `search`.

    Attributes:
        seconds: times of every run, in the order of `STAGES`.
    """

    def __init__(
        self,
        session: Session,
        waveforms: Sequence[FloatArray],
        beam_search: MakeDecoder = BEAM_SEARCH,
    ) -> None:
        self.session, self.waveforms = session, waveforms
        self.seconds: list[tuple[float, float, float]] = []
        self._extract = FeatureExtractor(session.description.features)
        alphabet, frame_s = Alphabet(session.description.labels), session.description.frame_s
        self._decoder = GreedyDecoder(alphabet, frame_s)
        self._beam_decoder = beam_search(alphabet, frame_s)
        rate = session.description.features.sample_rate
        self._durations_s = [len(waveform) / rate for waveform in waveforms]
        self._computed: tuple[FloatArray, IntArray] | None = None

    def __call__(self) -> list[Transcript]:
        """Run once; return the transcripts."""
        started = time.perf_counter()
        sound, lengths = prepare_sound(self.session, self._extract, self.waveforms)
        extracted = time.perf_counter()
        log_probs, output_lengths = self.session.run(sound, lengths)
        computed = time.perf_counter()
        transcripts = decode_batch(self._decoder, log_probs, output_lengths, self._durations_s)
        decoded = time.perf_counter()
        self.seconds.append((extracted - started, computed - extracted, decoded - computed))
        self._computed = log_probs, output_lengths
        return transcripts

    def search(self) -> list[Transcript]:
        """Decode the last run's log-probabilities by beam search; return the transcripts."""
        assert self._computed is not None
        return decode_batch(self._beam_decoder, *self._computed, self._durations_s)


def compare(
    runs: Mapping[Case, StagedRun],
    reference: Case,
    rounds: int,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Measurement]:
    """Measure models in turns, with one batch.

    Args:
        runs: run of each case, on the same waveforms.
        reference: case to compare with; it need not be among the runs.
        rounds: number of measured rounds.
        progress: function that is called with a description of the current run.
    """
    if not runs:
        return []
    names = {str(case): case for case in runs}
    totals = take_turns({name: runs[names[name]] for name in names}, rounds, progress=progress)
    searches = {name: runs[case].search for name, case in names.items()}
    searched = take_turns(searches, rounds, warm_up=0, progress=lambda _: None)
    rounds_s = {}
    for name, case in names.items():
        measured = runs[case].seconds[-rounds:]
        stages = {stage: [run[i] for run in measured] for i, stage in enumerate(STAGES)}
        rounds_s[case] = {"total": totals[name], **stages, "beam_search": searched[name]}
    compared = rounds_s.get(reference)
    return [_measurement(case, runs[case], own, compared) for case, own in rounds_s.items()]


def _measurement(
    case: Case,
    run: StagedRun,
    rounds_s: dict[str, list[float]],
    reference: dict[str, list[float]] | None,
) -> Measurement:
    rate = run.session.description.features.sample_rate
    audio_s = len(run.waveforms[0]) / rate
    total = latency(rounds_s["total"])
    against = reference or {}
    ratios = {name: ratio(against[name], rounds_s[name]) for name in against}
    return Measurement(
        model=case.model,
        runtime=case.runtime,
        batch=len(run.waveforms),
        audio_s=audio_s,
        total=total,
        features=latency(rounds_s["features"]),
        network=latency(rounds_s["network"]),
        decoding=latency(rounds_s["decoding"]),
        beam_search=latency(rounds_s["beam_search"]),
        rounds_s=rounds_s,
        real_time_factor=total.p50 / (audio_s * len(run.waveforms)),
        throughput=audio_s * len(run.waveforms) / total.p50,
        total_ratio=ratios.get("total"),
        network_ratio=ratios.get("network"),
    )
