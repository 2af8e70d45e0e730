"""Device runtime: numpy and one inference engine, without torch.

Audio in (`audio`, `pcm`), features (`features`), a session that gives log-probabilities
(`session`, `onnx_session`, `torch_session`, `tensorrt`), decoding (`decoding`), and the
`Recognizer` that joins them. While somebody speaks: `stream`, and `stream_pool` for many;
recordings of hours: `long_audio`.
"""
