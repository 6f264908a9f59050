"""Weights of a network: from a state dict, or back from a model (ONNX) that was made from them."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from edgepoint2_ros.engines.check import draw_scene
from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.models import Model, read_part
from edgepoint2_ros.models.variants import VARIANTS, Variant
from edgepoint2_ros.network.edgepoint2 import EdgePoint2


def load_network(path: Path, variant: Variant | None = None) -> EdgePoint2:
    """Read a state dict and return its network, ready for inference on the CPU.

    Args:
        path: a file as ``torch.save(network.state_dict())`` writes it, with the reference's names.
        variant: the variant that the file must hold; by default inferred from the shapes of its tensors.

    Raises:
        ModelError: the file is missing, not a state dict, or of another variant or architecture.
    """
    try:
        # pickle can run code on loading; weights_only allows only tensors and plain containers.
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


@torch.no_grad()
def restore_network(model: Model, trainable: bool = False) -> EdgePoint2:
    """Return the network that a model was made from, ready for inference on the CPU; a model made from it is the same.

    The weights come from the model for CPUs in fp32, by their names in a state dict. To be ``trainable``, batch
    normalisation, which was folded into the convolutions, gets the mean and variance that its input has on a drawn
    scene, and the scale and shift that undo them: the network's output stays the same, except for rounding.

    Raises:
        ModelError: the model is missing or corrupt.
    """
    graph = onnx.load_from_string(read_part(model)).graph
    values = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    network = EdgePoint2(model.variant).eval()
    norms: list[nn.BatchNorm2d] = []
    for name, conv in network.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        # A convolution that computes several pixels at once holds further copies of its weights.
        conv.weight.copy_(values[f'{name}.weight'][tuple(map(slice, conv.weight.shape))])
        offset = values[f'{name}.bias'][: conv.out_channels]
        if conv.bias is not None:
            conv.bias.copy_(offset)
            continue
        layers, place = name.rsplit('.', 1)
        norm = network.get_submodule(f'{layers}.{int(place) + 1}')
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None  # follows what has no bias
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(offset)
        norms.append(norm)
    if trainable:
        _estimate_statistics(network, norms)
    network.digests = {weights_digest(network): model.digest}
    return network


def _estimate_statistics(network: EdgePoint2, norms: list[nn.BatchNorm2d]) -> None:
    inputs = {}
    hooks = [norm.register_forward_pre_hook(lambda norm, args: inputs.update({norm: args[0]})) for norm in norms]
    network(torch.from_numpy(draw_scene(480, 640, 1)).float().permute(2, 0, 1)[None] / 255)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        norm.running_var, norm.running_mean = torch.var_mean(inputs[norm], dim=(0, 2, 3))
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.add_(norm.running_mean)


def weights_digest(network: EdgePoint2) -> str:
    """Return the identity of the weights: 16 hex digits, equal for equal numbers however they were stored.

    Weights restored from a model have the model's, until they change.
    """
    own = state_digest(network.variant.name, network.state_dict())
    return network.digests.get(own, own)


def state_digest(network: str, state: Mapping[str, torch.Tensor]) -> str:
    """Return the identity of the weights of a network of some name: 16 hex digits."""
    digest = hashlib.sha256(network.encode())
    for name, tensor in sorted(state.items()):
        if not name.endswith('num_batches_tracked'):  # counts training steps; not part of the function
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().numpy().astype('<f4').tobytes())
    return digest.hexdigest()[:16]


def _variant_of(state: dict[str, torch.Tensor]) -> Variant | None:
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for variant in VARIANTS:
        with torch.device('meta'):  # shapes without memory
            expected = EdgePoint2(variant).state_dict()
        if shapes == {name: tensor.shape for name, tensor in expected.items()}:
            return variant
    return None
