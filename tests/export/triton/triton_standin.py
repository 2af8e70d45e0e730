"""A server that stands in for Triton: its protocols (HTTP with binary tensors, gRPC) over the
simulated batchers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ds2deploy.export.triton.clients import make_batcher
from ds2deploy.export.triton.schema import parse_config
from ds2deploy.export.triton.simulator import Request, SimulatedModel, onnx_run
from ds2deploy.runtimes.triton import SequencePart

TYPES = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}
NAMES = {dtype: name for name, dtype in TYPES.items()}
PATIENCE_S = 600


class Served:
    """A model of a repository, and a thread that runs what is due."""

    def __init__(self, folder: Path) -> None:
        self.config = parse_config((folder / "config.pbtxt").read_text())
        self.model = SimulatedModel(self.config, onnx_run(folder / "1" / "model.onnx"))
        self.parts: list[SequencePart | None] = []
        self._batcher = make_batcher(self.model)
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def infer(self, inputs: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
        part = None
        if number := parameters.get("sequence_id"):
            start, end = parameters["sequence_start"], parameters["sequence_end"]
            part = SequencePart(int(number), start, end)
        request = Request(inputs, part)
        with self._changed:
            self.parts.append(part)
            self._batcher.submit(request, self._now())
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: request.error is not None or request.results is not None, PATIENCE_S
            )
        assert done
        if request.error is not None:
            raise request.error
        return dict(request.results)

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _serve(self) -> None:
        with self._changed:
            while not self._stopped:
                self._batcher.advance(self._now())
                self._changed.notify_all()
                due = self._batcher.deadline
                self._changed.wait(None if due is None else max(0.0, (due - self._now()) / 1e6))

    def _now(self) -> int:
        return time.monotonic_ns() // 1000


def handler(models: dict[str, Served]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.split("/")[3]
            if name not in models:
                return self._send(400, json.dumps({"error": f"unknown model: '{name}'"}).encode())
            config = json_format.MessageToDict(
                models[name].config, preserving_proto_field_name=True
            )
            return self._send(200, json.dumps(config).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            size = int(self.headers.get("Inference-Header-Content-Length", len(body)))
            document, rest = json.loads(body[:size]), body[size:]
            inputs = {}
            for tensor in document["inputs"]:
                count = tensor["parameters"]["binary_data_size"]
                array = np.frombuffer(rest[:count], TYPES[tensor["datatype"]])
                inputs[tensor["name"]] = array.reshape(tensor["shape"])
                rest = rest[count:]
            assert not rest
            try:
                found = models[self.path.split("/")[3]].infer(
                    inputs, document.get("parameters", {})
                )
            except Exception as error:
                return self._send(400, json.dumps({"error": str(error)}).encode())
            described, data = [], b""
            for wanted in document["outputs"]:
                array = found[wanted["name"]]
                described.append({
                    "name": wanted["name"], "datatype": NAMES[array.dtype],
                    "shape": array.shape, "parameters": {"binary_data_size": array.nbytes},
                })  # fmt: skip
                data += array.tobytes()
            head = json.dumps({"model_name": "m", "model_version": "1", "outputs": described})
            return self._send(200, head.encode() + data, len(head.encode()))

        def _send(self, status: int, body: bytes, head: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            if head is not None:
                self.send_header("Inference-Header-Content-Length", str(head))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, models: dict[str, Served]) -> None:
        self._models = models

    def ModelConfig(self, request: Any, context: Any) -> Any:
        if request.name not in self._models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model: '{request.name}'")
        return service_pb2.ModelConfigResponse(config=self._models[request.name].config)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        inputs = {
            tensor.name: np.frombuffer(raw, TYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in request.parameters.items()
        }
        try:
            found = self._models[request.model_name].infer(inputs, parameters)
        except Exception as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for wanted in request.outputs:
            array = found[wanted.name]
            response.outputs.add(name=wanted.name, datatype=NAMES[array.dtype], shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response


@contextmanager
def serving(repository: Path) -> Iterator[tuple[str, str, dict[str, Served]]]:
    """Addresses for HTTP and gRPC, and the models of a repository."""
    models = {folder.name: Served(folder) for folder in sorted(repository.iterdir())}
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(models))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(models), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{http.server_port}", f"127.0.0.1:{port}", models
    finally:
        server.stop(None).wait()
        http.shutdown()
        http.server_close()
        for model in models.values():
            model.stop()
