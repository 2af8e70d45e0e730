"""Errors of TensorRT's parser, in the words of the model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ds2deploy.runtimes.onnx.metadata import unreadable_model
from ds2deploy.runtimes.tensorrt.library import TensorRt

# TensorRT's names of types, and the precision that brings each about.
PRECISIONS = {"BFloat16": "bf16", "BF16": "bf16", "Half": "fp16"}


def explain_parser_errors(path: Path, parser: Any, library: TensorRt) -> str:
    """One line: which part of which file, what is wrong with it, and what to do.

    Args:
        path: path of the ONNX file.
        parser: TensorRT's, after it has refused the file.
        library: library of the parser.
    """
    if parser.num_errors == 0:
        return f"{path}: {library.title} cannot parse it and gives no reason; export it again"
    error = parser.get_error(0)
    text = " ".join(error.desc().split())
    name, operator = _call(error, "node_name"), _call(error, "node_operator")
    if "ParseFromCodedStream" in text or "Failed to parse the ONNX model" in text:
        return str(unreadable_model(path, f"refused by {library.title}"))
    where = f"{path}: {library.title} cannot parse {part_of_model(name, operator)}"
    conflict = re.search(r"types?\b.*?\b(Float|Half|BFloat16|BF16) and (Float|Half|BFloat16)", text)
    if conflict:
        return f"{where}: {_type_conflict(conflict.groups(), operator)}"
    if re.search(r"was not found in plugin registry|No importer registered", text):
        return (
            f"{where}: the operator {operator} is not supported; omit --trt and --rtx to "
            "export only ONNX"
        )
    return f"{where}: {_cause(text)}; try --precision fp32, or another release of TensorRT"


def part_of_model(name: str, operator: str) -> str:
    """Name of a node for people: `recurrent layer 1 (GRU)`."""
    base = name.partition("/")[0]
    for prefix, title in (("rnn", "recurrent layer"), ("conv", "convolution")):
        if match := re.fullmatch(rf"{prefix}(\d+)", base):
            return f"{title} {match[1]} ({operator})"
    titles = {"lookahead": "the lookahead", "output": "the output layer", "input": "the input"}
    return f"{titles.get(base, name or 'a node')} ({operator})"


def _type_conflict(types: tuple[str, ...], operator: str) -> str:
    precision = next((PRECISIONS[name] for name in types if name in PRECISIONS), "this precision")
    remedies = {"bf16": "--precision fp16 or fp32", "fp16": "--precision fp32"}
    also = "" if operator != "GRU" else ", or train an LSTM"
    return (
        f"it does not accept {operator} in {precision}, because its own constants are "
        f"{' and '.join(sorted(set(types)))}: choose {remedies.get(precision, 'another')}{also}"
    )


def _cause(text: str) -> str:
    """TensorRT's own words, without the places in its sources."""
    text = re.sub(r"^Invalid Node - \S+ ", "", text)
    text = re.sub(r"\[\w+\.cpp::\w+::\d+\] Error Code 1: Cuda Runtime.*", "", text)
    text = re.sub(r"\b(In|at) \S+\.cpp:\d+\)?", "", text)
    return text.strip()[:240]


def _call(error: Any, name: str) -> str:
    """Read a field that not every release has."""
    method = getattr(error, name, None)
    return str(method()) if method is not None else ""
