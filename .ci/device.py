"""What a device does with the wheel and the `cpu` extra: recognise speech, without torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import ds2deploy

ABSENT = ("torch", "lightning", "onnx", "lhotse", "jiwer")


def main(demo: Path) -> None:
    """Check the installed wheel with what `ds2deploy demo` left behind."""
    present = [name for name in ABSENT if importlib.util.find_spec(name) is not None]
    assert not present, f"this environment must not have {present}"
    assert Path.cwd() not in Path(ds2deploy.__file__).parents or "build" in ds2deploy.__file__

    model, audio = demo / "models" / "model.onnx", demo / "audio" / "test" / "00000.wav"
    expected = audio.with_suffix(".txt").read_text(encoding="utf-8").strip()
    command = [Path(sys.executable).parent / "ds2deploy", "transcribe", model, audio]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert printed == expected, f"{audio}: heard {printed!r}, said {expected!r}"
    assert ds2deploy.load(model).transcribe(audio).text == expected

    command[1:] = ["export", demo / "run" / "best.ckpt", "--out", demo / "none"]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 2, refused
    assert "pip install 'ds2deploy[export]'" in refused.stderr, refused.stderr
    print(f"device: {printed!r} from {audio.name}, without {', '.join(ABSENT)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
