"""Store a checkpoint's weights in half precision: `python half_precision.py best.ckpt small.ckpt`.

Statistics of batch norms stay in float32. The checkpoint loads as before, at half the size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ds2deploy.runtimes.files import whole_file


def main(path: str, out: str) -> None:
    """Write the smaller checkpoint."""
    document = torch.load(path, weights_only=True)
    weights = document["state_dict"]
    for name, value in weights.items():
        if value.dtype == torch.float32 and "running" not in name:
            weights[name] = value.half()
    with whole_file(Path(out)) as temporary:
        torch.save(document, temporary)


if __name__ == "__main__":
    main(*sys.argv[1:])
