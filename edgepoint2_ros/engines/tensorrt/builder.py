"""From a model to a plan: TensorRT's parser and builder."""

from typing import Any

from edgepoint2_ros.engines.base import Shape
from edgepoint2_ros.engines.tensorrt.bindings import create, logger_of
from edgepoint2_ros.errors import EngineError


def build_plan(tensorrt: Any, onnx: bytes, inputs: dict[str, Shape], timing: bytes = b'') -> tuple[bytes, bytes]:
    """Build a plan and return it with the timings of the build, which make the next one quicker.

    Args:
        tensorrt: the module tensorrt or tensorrt_rtx.
        onnx: the model for TensorRT.
        inputs: the shape of each input.
        timing: timings of an earlier build by the same TensorRT on the same GPU.

    Raises:
        EngineError: TensorRT refuses; the message quotes it.
    """
    logger = logger_of(tensorrt)
    builder = create(lambda: tensorrt.Builder(logger), 'builder', logger)
    network = parse(tensorrt, builder, onnx, inputs)
    config = builder.create_builder_config()
    if not hasattr(tensorrt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED'):
        _allow_half_8(tensorrt, network, config)
    cache = config.create_timing_cache(timing)
    config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f'cannot build the plan: {logger.reasons()}')
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def parse(tensorrt: Any, builder: Any, onnx: bytes, inputs: dict[str, Shape]) -> Any:
    """Return the network of a model for fixed input shapes, with the type that the model gives each tensor.

    Raises:
        EngineError: TensorRT cannot read the model.
    """
    flags = tensorrt.NetworkDefinitionCreationFlag
    # 8.6 has no strongly typed networks, and must be told that the batch is a dimension like any other.
    flag = flags.STRONGLY_TYPED if hasattr(flags, 'STRONGLY_TYPED') else flags.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    parser = tensorrt.OnnxParser(network, logger_of(tensorrt))
    if not parser.parse(onnx):
        reasons = '; '.join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f'cannot parse the model: {reasons}')
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        tensor.shape = inputs[tensor.name]
    return network


def fp32_layers(tensorrt: Any, network: Any) -> list[Any]:
    """Return the layers that compute in fp32: those with an fp32 output, except constants and casts."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [
        layer
        for layer in layers
        if layer.type not in (tensorrt.LayerType.CONSTANT, tensorrt.LayerType.CAST)
        and any(layer.get_output(i).dtype == tensorrt.DataType.FLOAT for i in range(layer.num_outputs))
    ]


def _allow_half_8(tensorrt: Any, network: Any, config: Any) -> None:
    """Let TensorRT 8.6 use fp16 anywhere, except where the model says fp32."""
    config.set_flag(tensorrt.BuilderFlag.FP16)
    config.set_flag(tensorrt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for layer in fp32_layers(tensorrt, network):
        layer.precision = tensorrt.DataType.FLOAT
        for i in range(layer.num_outputs):
            if layer.get_output(i).dtype == tensorrt.DataType.FLOAT:
                layer.set_output_type(i, tensorrt.DataType.FLOAT)
