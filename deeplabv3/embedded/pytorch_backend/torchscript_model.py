"""Run a TorchScript file as NVIDIA's native pytorch backend does.

This module follows the native backend's rules, so that a model repository that works here works there; each rule is
from the native backend's source (triton-inference-server/pytorch_backend, src/pt).
"""

# pyright: reportPrivateUsage=false
# torch has no public switches for its TorchScript executor.

from __future__ import annotations

import json
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The data types that the native backend supports; BF16 is not among them.
_TORCH_DTYPES = {
    "TYPE_BOOL": torch.bool,
    "TYPE_UINT8": torch.uint8,
    "TYPE_INT8": torch.int8,
    "TYPE_INT16": torch.int16,
    "TYPE_INT32": torch.int32,
    "TYPE_INT64": torch.int64,
    "TYPE_FP16": torch.float16,
    "TYPE_FP32": torch.float32,
    "TYPE_FP64": torch.float64,
}

# Parameters of the native backend, in its spelling. ENABLE_WEIGHT_SHARING has no effect here, because every instance is
# a process. Two are not of the native backend: Triton's Python backend reads FORCE_CPU_ONLY_INPUT_TENSORS, and model.py
# reads LOAD_AT_FIRST_REQUEST.
_KNOWN_PARAMETERS = frozenset(
    {
        "DISABLE_CUDNN",
        "DISABLE_OPTIMIZED_EXECUTION",
        "ENABLE_CACHE_CLEANING",
        "ENABLE_JIT_EXECUTOR",
        "ENABLE_JIT_PROFILING",
        "ENABLE_TENSOR_FUSER",
        "ENABLE_WEIGHT_SHARING",
        "FORCE_CPU_ONLY_INPUT_TENSORS",
        "INFERENCE_MODE",
        "INTER_OP_THREAD_COUNT",
        "INTRA_OP_THREAD_COUNT",
        "LOAD_AT_FIRST_REQUEST",
    }
)


class ModelContractError(RuntimeError):
    """The TorchScript file and config.pbtxt do not fit together."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The native backend's parameters; None leaves torch's default."""

    inference_mode: bool | None
    disable_optimized_execution: bool | None
    disable_cudnn: bool | None
    jit_profiling: bool | None
    jit_executor: bool | None
    tensor_fuser: bool | None
    cache_cleaning: bool | None
    intra_op_threads: int | None
    inter_op_threads: int | None

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Settings:
        """Parse the parameters of config.pbtxt; unknown ones are logged and ignored."""
        unknown = sorted(set(parameters) - _KNOWN_PARAMETERS)
        if unknown:
            pb_utils.Logger.log_info(
                f"ignoring parameters that the pytorch backend does not have: {', '.join(unknown)}"
            )
        _flag(parameters, "ENABLE_WEIGHT_SHARING")  # has no effect here, but the native backend refuses other words
        return cls(
            inference_mode=_flag(parameters, "INFERENCE_MODE"),
            disable_optimized_execution=_flag(parameters, "DISABLE_OPTIMIZED_EXECUTION"),
            disable_cudnn=_flag(parameters, "DISABLE_CUDNN"),
            jit_profiling=_flag(parameters, "ENABLE_JIT_PROFILING"),
            jit_executor=_flag(parameters, "ENABLE_JIT_EXECUTOR"),
            tensor_fuser=_flag(parameters, "ENABLE_TENSOR_FUSER"),
            cache_cleaning=_flag(parameters, "ENABLE_CACHE_CLEANING"),
            intra_op_threads=_thread_count(parameters, "INTRA_OP_THREAD_COUNT"),
            inter_op_threads=_thread_count(parameters, "INTER_OP_THREAD_COUNT"),
        )

    def apply(self) -> None:
        """Apply the settings of the whole process."""
        if self.intra_op_threads:
            torch.set_num_threads(self.intra_op_threads)
        if self.inter_op_threads:
            torch.set_num_interop_threads(self.inter_op_threads)
        if self.disable_cudnn:
            torch.backends.cudnn.enabled = False
        if self.disable_optimized_execution:
            torch._C._set_graph_executor_optimize(False)  # noqa: SLF001, FBT003 - torch has no public switch
        if self.jit_profiling is not None:
            torch._C._jit_set_profiling_mode(self.jit_profiling)  # noqa: SLF001 - as above
        if self.jit_executor is not None:
            torch._C._jit_set_profiling_executor(self.jit_executor)  # noqa: SLF001 - as above
        if self.tensor_fuser is not None:
            torch._C._jit_set_texpr_fuser_enabled(self.tensor_fuser)  # noqa: SLF001 - as above


def _flag(parameters: Mapping[str, str], name: str) -> bool | None:
    """Return a switch as triton-inference-server/backend parses it (ParseBoolValue): no spaces, any case."""
    if name not in parameters:
        return None
    text = parameters[name].lower()
    if text not in {"true", "on", "1", "false", "off", "0"}:
        raise ModelContractError(f"parameter {name} must be 'true' or 'false', got {parameters[name]!r}")
    return text in {"true", "on", "1"}


def _thread_count(parameters: Mapping[str, str], name: str) -> int | None:
    """Return a number as C++'s std::stoi parses it, ignoring text after the digits; None for numbers below 1."""
    if name not in parameters:
        return None
    number = re.match(r"[ \t\n\v\f\r]*([+-]?[0-9]+)", parameters[name])
    if number is None:
        raise ModelContractError(f"parameter {name} must be an integer, got {parameters[name]!r}")
    return max(int(number[1]), 0) or None


def _index_suffixes(names: Sequence[str]) -> list[int] | None:
    """Return N of each NAME__N, or None if a name has no such suffix: then the order in the config counts."""
    suffixes = [name.partition("__")[2] for name in names]
    return [int(suffix) for suffix in suffixes] if all(s.isdigit() for s in suffixes) else None


def _input_order(names: Sequence[str], arguments: Sequence[str]) -> list[int]:
    """Return the position among forward's arguments of each input of the config.

    Inputs are matched by argument name if all names are arguments, by NAME__N if all have that form, else by order.
    """
    if len(names) != len(arguments):
        raise ModelContractError(
            f"config.pbtxt has {len(names)} inputs, but the model's forward takes {len(arguments)}: {list(arguments)}"
        )
    if set(names) <= set(arguments):
        return [arguments.index(name) for name in names]
    order = _index_suffixes(names) or list(range(len(names)))
    if sorted(order) != list(range(len(names))):
        raise ModelContractError(
            f"the numbers in the input names {list(names)} must be those of the arguments, counted from 0"
        )
    return order


class TorchScriptModel:
    """One instance: one TorchScript module on one device.

    Args:
        args: as Triton gives them to a Python model.

    Raises:
        ModelContractError: the native backend would refuse the model when it loads it.
    """

    def __init__(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._settings = Settings.from_parameters(
            {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        )
        self._settings.apply()
        self._batches = config["max_batch_size"] > 0
        on_gpu = args["model_instance_kind"] == "GPU"
        self._device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        if on_gpu:
            torch.cuda.set_device(self._device)

        version = Path(args["model_repository"]) / args["model_version"]
        file = version / (config.get("default_model_filename") or "model.pt")
        if not file.exists():
            raise FileNotFoundError(f"unable to find {file} for model {args['model_name']}")
        # A frozen module has its weights as constants, which can only be moved while it is loaded. No .eval(), because
        # the native backend runs a module in the mode in which it was saved.
        self._module = torch.jit.load(str(file), map_location=self._device)

        arguments = [argument.name for argument in self._module.forward.schema.arguments][1:]
        self._inputs = [entry["name"] for entry in config["input"]]
        self._input_order = _input_order(self._inputs, arguments)
        outputs = config["output"]
        names = [entry["name"] for entry in outputs]
        for entry in [*config["input"], *outputs]:
            if entry["data_type"] not in _TORCH_DTYPES:
                raise ModelContractError(f"unsupported data type {entry['data_type']} of {entry['name']!r}")
        # The native backend returns outputs in alphabetical order, the order of its std::map.
        self._output_index = dict(sorted(zip(names, _index_suffixes(names) or range(len(names)), strict=True)))
        self._output_dtype = {entry["name"]: _TORCH_DTYPES[entry["data_type"]] for entry in outputs}

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Run the requests as one batch; as in the native backend, an error fails all of them."""
        try:
            if self._batches:
                return self._run(requests)
            return [response for request in requests for response in self._run([request])]
        except ModelContractError as exc:
            # If this fails a warm-up, tritonserver 2.51 sometimes crashes before it reports the error or reads the
            # queue of its Logger.
            sys.stderr.write(f"{exc}\n")
            sys.stderr.flush()
            error = pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)
        except Exception as exc:  # noqa: BLE001 - torch raises any type for bad inputs; logged, and returned to the callers
            pb_utils.Logger.log_error(traceback.format_exc())
            error = pb_utils.TritonError(f"PyTorch execute failure: {exc}", pb_utils.TritonError.INTERNAL)
        return [pb_utils.InferenceResponse(error=error) for _ in requests]

    def _run(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        arguments: list[torch.Tensor] = [torch.empty(0)] * len(self._inputs)
        batch_sizes: list[int] = []
        for name, position in zip(self._inputs, self._input_order, strict=True):
            parts = [
                torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack()) for request in requests
            ]
            batch_sizes = [part.shape[0] for part in parts]
            arguments[position] = self._join(parts)

        mode = torch.no_grad() if self._settings.inference_mode is False else torch.inference_mode()
        with mode:
            outputs = self._by_name(self._module(*arguments))
        batches = {name: tensor.split(batch_sizes) if self._batches else [tensor] for name, tensor in outputs.items()}
        responses = [
            pb_utils.InferenceResponse(
                [
                    self._output(name, batches[name][index])
                    for name in self._output_index
                    if name in request.requested_output_names()
                ]
            )
            for index, request in enumerate(requests)
        ]
        if self._settings.cache_cleaning and self._device.type == "cuda":
            torch.cuda.empty_cache()
        return responses

    def _join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Return the inputs of all requests as one tensor on this instance's device."""
        if len(parts) == 1:
            return parts[0].to(self._device)
        if self._device.type == "cpu":
            return torch.cat(parts)
        # Directly to its place on the GPU, without a copy on the CPU.
        size = sum(part.shape[0] for part in parts)
        joined = torch.empty((size, *parts[0].shape[1:]), dtype=parts[0].dtype, device=self._device)
        for place, part in zip(joined.split([part.shape[0] for part in parts]), parts, strict=True):
            place.copy_(part, non_blocking=True)
        return joined

    def _output(self, name: str, tensor: torch.Tensor) -> pb_utils.Tensor:
        """Return a tensor to Triton on its device; Triton copies it if its reader needs it elsewhere."""
        if self._device.type == "cpu":
            return pb_utils.Tensor(name, tensor.contiguous().numpy())
        # The tensor itself instead of a capsule, because with a capsule Triton would not wait for the GPU.
        return pb_utils.Tensor.from_dlpack(name, tensor.contiguous())

    def _by_name(self, result: object) -> dict[str, torch.Tensor]:
        """Return the config's outputs by name; raise for results that the native backend would refuse."""
        values: tuple[object, ...] = result if isinstance(result, tuple) else (result,)
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        if len(tensors) != len(values):
            kinds = ", ".join(type(value).__name__ for value in values)
            raise TypeError(f"the model must return a tensor or a tuple of tensors, but returned {kinds}")
        for name, index in self._output_index.items():
            if index >= len(tensors):
                raise ModelContractError(
                    f"output {name!r} in config.pbtxt is output {index} of the model, but it has {len(tensors)}"
                )
        named = {name: tensors[index] for name, index in self._output_index.items()}
        for name, tensor in named.items():
            if tensor.dtype != self._output_dtype[name]:
                raise ModelContractError(
                    f"config.pbtxt expects {self._output_dtype[name]} for output {name!r}, but the model provides "
                    f"{tensor.dtype}"
                )
            if tensor.ndim == 0:
                raise ModelContractError(f"output {name!r} is a scalar, which is not supported")
        return named
