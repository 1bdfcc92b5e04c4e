"""The configs of the core models, of the ensembles around them, and of the models for direct callers."""

from typing import Any

from google.protobuf.message import Message

from deeplabv3.building.plan import Plan
from deeplabv3.building.settings import LARGEST_REQUEST
from deeplabv3.repository.config import pb

# The executor profiles the first run of a shape and optimizes in the second.
_GPU_WARM_UP_RUNS = 2


def core_config(plan: Plan, sides: tuple[int, int]) -> Message:
    """Return the config of core_<variant>, a step of the ensemble: samples of pictures in, coarse logits out.

    Args:
        plan: the variant.
        sides: height and width of the warm-up pictures in pixels, to which preprocess resizes.
    """
    config = _model_config(plan, plan.core)
    config.input.add(name="PIXELS", data_type=pb.TYPE_UINT8, dims=[-1, -1, 3])
    config.input.add(name="IMAGE_ID", data_type=pb.TYPE_INT64, dims=[1])
    config.output.add(name="LOGITS", data_type=pb.TYPE_FP32, dims=[len(plan.class_names), -1, -1])
    config.output.add(name="IMAGE_ID", data_type=pb.TYPE_INT64, dims=[1])
    if plan.device == "cpu":
        # A model that is built for one device does not run, or runs slowly, on the other. No dynamic batching: one
        # picture keeps all cores busy, so eight together take 4 % longer than one by one (docs/performance.md), and
        # each of them waits for all.
        config.max_batch_size = LARGEST_REQUEST
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        # The first run of the executor finds a wrong output dtype or number, so that a broken file fails at load.
        _add_warm_up(config, 1, sides)
        return config
    config.max_batch_size = plan.max_batch_size
    _add_batching(config, plan, instances=plan.instances)
    config.dynamic_batching.max_queue_delay_microseconds = round(plan.queue_delay * 1e6)
    # The largest first: the others use the memory that it allocates, and the executor compiles kernels for the first
    # two shapes. cuDNN plans every convolution again for each batch size. Sizes without a warm-up cost a few
    # milliseconds more once, whereas a warm-up of all sizes would slow down every start.
    sizes = {plan.max_batch_size, *(1 << power for power in range(plan.max_batch_size.bit_length()))}
    for batch in sorted(sizes, reverse=True):
        _add_warm_up(config, batch, sides, runs=_GPU_WARM_UP_RUNS)
    return config


def direct_config(plan: Plan) -> Message:
    """Return the config of deeplabv3_<variant>, for direct callers: a normalized batch in, full-size logits out."""
    config = _model_config(plan, plan.direct_name)
    config.input.add(name="input", data_type=pb.TYPE_FP32, dims=[3, -1, -1])
    for name in ("out", "aux") if plan.aux else ("out",):
        config.output.add(name=name, data_type=pb.TYPE_FP32, dims=[len(plan.class_names), -1, -1])
    # `out` is 22.7 MB a picture of 520 x 520, and Triton copies it: small batches.
    config.max_batch_size = min(LARGEST_REQUEST, plan.max_batch_size)
    if plan.device == "cpu":
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    else:
        _add_batching(config, plan, instances=1)
    # The embedded server reads the file at the first request, because most users never send one. NVIDIA's backend does
    # not know this parameter and reads the file at the start.
    config.parameters["LOAD_AT_FIRST_REQUEST"].string_value = "true"
    return config


def _model_config(plan: Plan, name: str) -> Any:  # noqa: ANN401 - a protobuf message
    config = pb.ModelConfig(name=name, platform="pytorch_libtorch")
    config.parameters["weights"].string_value = plan.source.label
    config.parameters["precision"].string_value = plan.precision
    return config


def _add_batching(config: Any, plan: Plan, *, instances: int) -> None:  # noqa: ANN401 - a protobuf message
    """Enable dynamic batching for a model on GPUs."""
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, count=instances)
    config.dynamic_batching.SetInParent()
    if plan.max_queue_size:
        config.dynamic_batching.default_queue_policy.max_queue_size = plan.max_queue_size
    # One copy of the weights for all instances; only NVIDIA's own backend has several instances in a process.
    config.parameters["ENABLE_WEIGHT_SHARING"].string_value = "true"
    # For the Python-based stand-in for NVIDIA's backend, which always leaves tensors where they are.
    config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"


def _add_warm_up(config: Any, batch: int, sides: tuple[int, int], *, runs: int = 0) -> None:  # noqa: ANN401 - a protobuf message
    """Add a warm-up with a batch of black pictures to the config of a core model."""
    height, width = sides
    name = f"batch {batch} at {width} x {height}"
    inputs = config.model_warmup.add(name=name, batch_size=batch, count=runs).inputs
    for tensor, dims in (("PIXELS", [height, width, 3]), ("IMAGE_ID", [1])):
        inputs[tensor].data_type = next(each.data_type for each in config.input if each.name == tensor)
        inputs[tensor].dims.extend(dims)
        inputs[tensor].zero_data = True


def ensemble_config(plan: Plan) -> Message:
    """Return the config of segment_<variant>: image bytes in, mask at the image's own size out."""
    # --max-batch-size may be smaller.
    largest = min(LARGEST_REQUEST, plan.max_batch_size)
    config = pb.ModelConfig(name=plan.ensemble, platform="ensemble", max_batch_size=largest)
    config.input.add(name="IMAGE", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="MASK", data_type=pb.TYPE_UINT8, dims=[-1, -1])
    config.output.add(name="CLASS_PIXELS", data_type=pb.TYPE_INT64, dims=[len(plan.class_names)])
    config.output.add(name="CLASS_NAMES", data_type=pb.TYPE_STRING, dims=[len(plan.class_names)])
    config.output.add(name="MASK_PNG", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="CONFIDENCE", data_type=pb.TYPE_UINT8, dims=[-1, -1])
    config.output.add(name="IMAGE_ID", data_type=pb.TYPE_INT64, dims=[1])
    steps = {
        # IMAGE_ID passes through every step on the way to MASK, so that it reveals a mix-up in any step. It has another
        # name between steps, because Triton counts an ensemble output that a step also reads twice (MASK_FOR_PNG).
        "preprocess": ({"IMAGE": "IMAGE"}, {"PIXELS": "PIXELS", "SIZE": "SIZE", "IMAGE_ID": "PIXELS_ID"}),
        plan.core: ({"PIXELS": "PIXELS", "IMAGE_ID": "PIXELS_ID"}, {"LOGITS": "LOGITS", "IMAGE_ID": "LOGITS_ID"}),
        "postprocess": (
            {"LOGITS": "LOGITS", "SIZE": "SIZE", "IMAGE_ID": "LOGITS_ID"},
            {name: name for name in ("MASK", "MASK_FOR_PNG", "CLASS_PIXELS", "CLASS_NAMES", "IMAGE_ID")},
        ),
        "encode_mask": ({"MASK": "MASK_FOR_PNG"}, {"MASK_PNG": "MASK_PNG"}),
        "confidence": ({"LOGITS": "LOGITS", "SIZE": "SIZE"}, {"CONFIDENCE": "CONFIDENCE"}),
    }
    for model, (inputs, outputs) in steps.items():
        config.ensemble_scheduling.step.add(model_name=model, model_version=-1, input_map=inputs, output_map=outputs)
    config.parameters["weights"].string_value = plan.source.label
    config.parameters["background"].string_value = "true" if plan.background else "false"
    return config
