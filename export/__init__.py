"""Export of checkpoints to artifacts, and the proof that they compute what was trained.

`lowering` folds the network into what a device computes, `graph` writes it as ONNX, `parity`
compares the file with the checkpoint, `artifacts` joins the three.
"""
