"""What a device does with the wheel and the `cpu` extra: recognise speech, without torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import ds2deploy

ABSENT = ("torch", "lightning", "onnx", "lhotse", "jiwer", "tensorrt_rtx_bindings", "polygraphy")


def main(demo: Path, expected_file: Path) -> None:
    """Check the installed wheel with what `ds2deploy demo` left behind.

    Args:
        demo: its folder.
        expected_file: what the checkpoint made of its first test recording, on torch.
    """
    present = [name for name in ABSENT if importlib.util.find_spec(name) is not None]
    assert not present, f"this environment must not contain {present}"
    assert Path(sys.prefix) in Path(ds2deploy.__file__).parents, ds2deploy.__file__

    model, audio = demo / "models" / "model.onnx", demo / "audio" / "test" / "00000.wav"
    expected = expected_file.read_text(encoding="utf-8").strip()
    command = [Path(sys.executable).parent / "ds2deploy", "transcribe", model, audio]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert printed == expected != "", f"{audio}: {printed!r} here, {expected!r} with torch"
    assert ds2deploy.load(model).transcribe(audio).text == expected

    checkpoint = demo / "run" / "best.ckpt"
    for arguments, extra in (
        (["export", checkpoint, "--out", demo / "none"], "export"),
        (["export", model, "--rtx", "--out", demo / "none"], "rtx"),
        (["transcribe", checkpoint, audio], "train"),
        (["inspect", checkpoint], "train"),
        (["inspect", demo / "audio" / "test.jsonl.gz"], "train"),
        (["train", "demo"], "train"),
    ):
        command[1:] = arguments
        refused = subprocess.run(command, check=False, capture_output=True, text=True)
        assert refused.returncode == 2, (arguments, refused)
        assert f"pip install 'ds2deploy[{extra}]'" in refused.stderr, refused.stderr
        # A busy machine may have needed lines of progress.
        complaints = [line for line in refused.stderr.splitlines() if line[:10] == "ds2deploy:"]
        assert len(complaints) == 1, refused.stderr
    print(f"device: {printed!r} from {audio.name}, without {', '.join(ABSENT)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
