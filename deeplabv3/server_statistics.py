"""Triton's statistics of its models: requests, executions, batches, and how long each part of a request took."""

from __future__ import annotations

import json
import urllib.request
from typing import Any, cast
from urllib.parse import urlsplit

_SECONDS = 10.0
TIMES = ("queue", "compute_input", "compute_infer", "compute_output")
"""The parts of the time of a request in a model."""

_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}  # as in deeplab_client


def server_address(url: str) -> tuple[str, str]:
    """Return the scheme of a server's URL (default: gRPC) and `HOST:PORT` (default: the port of the scheme).

    Raises:
        ValueError: the URL has no host, or its scheme is not `grpc`, `grpcs`, `http` or `https`.
    """
    parts = urlsplit(url if "://" in url else f"grpc://{url}")
    if not parts.hostname or parts.scheme not in _PORTS:
        raise ValueError(f"the URL must be grpc://HOST:PORT or http://HOST:PORT, got {url!r}")
    return parts.scheme, parts.netloc if parts.port else f"{parts.netloc}:{_PORTS[parts.scheme]}"


def read(url: str) -> dict[str, Any]:
    """Return Triton's counts since each model was loaded, by model; times are in seconds.

    Args:
        url: as `server_address` takes it.

    Raises:
        OSError: The server cannot be reached.
        Exception: an error of tritonclient, or the reply has no statistics.
    """
    scheme, address = server_address(url)
    if scheme in {"grpc", "grpcs"}:
        from tritonclient.grpc import InferenceServerClient  # noqa: PLC0415 - loads gRPC, which HTTP does not need

        with InferenceServerClient(address, ssl=scheme == "grpcs") as client:
            answer = client.get_inference_statistics(as_json=True, client_timeout=_SECONDS)
    else:
        with urllib.request.urlopen(f"{scheme}://{address}/v2/models/stats", timeout=_SECONDS) as response:  # noqa: S310 - a URL of the command line
            answer = json.load(response)
    return {model["name"]: _counts(model) for model in cast("dict[str, Any]", answer)["model_stats"]}


def between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any] | None:
    """Return the counts between two readings, for the models that answered a request in between.

    The result is None if a count fell, because several servers share the address or the server restarted.
    """
    found = {name: _difference(before.get(name, {}), counts) for name, counts in after.items()}
    if any(_fell(counts) for counts in found.values()):
        return None
    return {name: counts for name, counts in found.items() if counts["requests"] > 0}


def means(counts: dict[str, Any]) -> dict[str, float]:
    """Return the mean `batch`, and the mean milliseconds of a request by TIMES, such as `queue_ms`, and `compute_ms`.

    Args:
        counts: Of one model that answered a request, as `between` returns them.
    """
    times = {f"{name}_ms": 1e3 * counts[f"{name}_seconds"] / counts["requests"] for name in TIMES}
    compute = sum(times[f"{name}_ms"] for name in TIMES[1:])
    return {"batch": counts["inferences"] / max(1, counts["executions"]), **times, "compute_ms": compute}


def _fell(counts: dict[str, Any]) -> bool:
    return any(_fell(value) if isinstance(value, dict) else value < 0 for value in counts.values())


def _counts(model: dict[str, Any]) -> dict[str, Any]:
    # gRPC's JSON has 64-bit numbers as text and omits zeros.
    times = model.get("inference_stats", {})
    return {
        "requests": int(times.get("success", {}).get("count", 0)),
        "failures": int(times.get("fail", {}).get("count", 0)),
        "seconds": int(times.get("success", {}).get("ns", 0)) / 1e9,
        **{f"{name}_seconds": int(times.get(name, {}).get("ns", 0)) / 1e9 for name in TIMES},
        "inferences": int(model.get("inference_count", 0)),
        "executions": int(model.get("execution_count", 0)),
        "batches": {
            str(batch["batch_size"]): {
                "executions": int(batch["compute_infer"]["count"]),
                "seconds": sum(int(batch[name].get("ns", 0)) for name in TIMES[1:]) / 1e9,
            }
            for batch in model.get("batch_stats", [])
        },
    }


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in after.items():
        if isinstance(value, dict):
            nested = _difference(before.get(name, {}), cast("dict[str, Any]", value))
            found[name] = {
                key: part for key, part in nested.items() if not isinstance(part, dict) or any(part.values())
            }
        else:
            found[name] = value - before.get(name, 0)
    return found
