"""What runs on the device: numpy and one runtime, no torch.

Audio in (`audio`), features (`features`), a session that gives log-probabilities (`session`,
`onnx_session`, `torch_session`), decoding (`decoding`), and the `Recognizer` that joins them.
"""
