"""Weights of a network: from a state dict, or back from a model (ONNX) that was made of them."""

import pickle
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from edgepoint2_ros.engines.check import draw_scene
from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.models import Model, read_part
from edgepoint2_ros.network.edgepoint2 import EdgePoint2
from edgepoint2_ros.variants import VARIANTS, Variant


def load_network(path: Path, variant: Variant | None = None) -> EdgePoint2:
    """Read a state dict and return its network, ready for inference on the CPU.

    Args:
        path: a file as ``torch.save(network.state_dict())`` writes it, with the reference's names.
        variant: the variant that the file must hold; by default the shapes of its tensors tell.

    Raises:
        ModelError: the file is missing, not a state dict, or of another variant or architecture.
    """
    try:
        # pickle can run code on loading; weights_only allows tensors and plain containers alone.
        state = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise ModelError(f'no file {path}') from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f'{path} is not a state dict that torch can load: {reason[0] if reason else error!r}'
        ) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ModelError(f'{path}: expected a state dict (names to tensors), got {type(state).__name__}')
    held = _variant_of(state)
    if held is None:
        raise ModelError(f'{path}: its {len(state)} tensors are not those of any of the 14 variants of EdgePoint2')
    if variant is not None and held != variant:
        raise ModelError(f'{path} holds weights of {held}, but {variant} was asked for')
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise ModelError(f'{path} holds numbers that are not finite')
    network = EdgePoint2(held)
    network.load_state_dict(state)
    return network.eval()


def restore_network(model: Model) -> EdgePoint2:
    """Return the network that a model was made of, ready for inference and for further training, on the CPU.

    The weights come from the model for TensorRT, which holds them layer by layer, in fp16. Batch normalisation, which
    was folded into the convolutions, gets the mean and variance that its input has on a drawn scene, and the scale and
    shift that undo them: what the network computes stays the same, and training can go on from there.

    Raises:
        ModelError: the model for TensorRT is missing or corrupt.
    """
    graph = onnx.load_from_string(read_part(model, 'fp16')).graph
    values = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights = [[values[name].float() for name in node.input[1:3]] for node in graph.node if node.op_type == 'Conv']
    # The last convolution of the descriptors is a product with the K sampled rows: (inputs, outputs), then an addition.
    used = [name for node in graph.node if node.op_type in ('MatMul', 'Add') for name in node.input if name in values]
    projection = [values[name].float() for name in used if values[name].shape[-1:] == (model.variant.descriptor_size,)]
    network = EdgePoint2(model.variant).eval()
    norms = {}
    with torch.no_grad():
        for (conv, norm), (weight, offset) in zip(_convolutions(network), weights, strict=True):
            conv.weight.copy_(weight)
            if norm is None:
                conv.bias.copy_(offset)
            else:
                norms[norm] = offset
                norm.weight.fill_((1 + norm.eps) ** 0.5)
                norm.bias.copy_(offset)
        network.desc_head[2].weight.copy_(projection[0].T[..., None, None])
        network.desc_head[2].bias.copy_(projection[1])

        inputs = {}
        hooks = [norm.register_forward_pre_hook(lambda norm, args: inputs.update({norm: args[0]})) for norm in norms]
        network(torch.from_numpy(draw_scene(480, 640, 1)).float().permute(2, 0, 1)[None] / 255)
        for hook in hooks:
            hook.remove()
        for norm, offset in norms.items():
            variance, mean = torch.var_mean(inputs[norm], dim=(0, 2, 3))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.copy_(offset + mean)
    return network


def _convolutions(network: EdgePoint2) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """Return all but the last convolution of the descriptors, in the order of the model for TensorRT."""

    def residual(block):
        skip = [(block.skip, None)] if isinstance(block.skip, nn.Conv2d) else []
        return [(block.layer[0], block.layer[1]), (block.layer[3], block.layer[4]), *skip]

    first, second, third = network.block1
    return [
        *((block.layer[0], block.layer[1]) for block in (first, second)),
        *(pair for block in (third, network.block2, network.block3) for pair in residual(block)),
        (network.desc_head[0], None),
        (network.desc_head[1].layer[0], network.desc_head[1].layer[1]),
        *((conv, None) for conv in (network.conv1, network.conv2, network.conv3)),
        *((network.score_head[k], None) for k in (0, 2, 4)),
    ]


def _variant_of(state: dict[str, torch.Tensor]) -> Variant | None:
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for variant in VARIANTS:
        with torch.device('meta'):  # shapes without memory
            expected = EdgePoint2(variant).state_dict()
        if shapes == {name: tensor.shape for name, tensor in expected.items()}:
            return variant
    return None
