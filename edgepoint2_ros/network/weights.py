"""Weights of a network: the official ones, known by their SHA-256, or a state dict of one's own."""

import pickle
from pathlib import Path

import torch

from edgepoint2_ros.errors import ModelError
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


def _variant_of(state: dict[str, torch.Tensor]) -> Variant | None:
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for variant in VARIANTS:
        with torch.device('meta'):  # shapes without memory
            expected = EdgePoint2(variant).state_dict()
        if shapes == {name: tensor.shape for name, tensor in expected.items()}:
            return variant
    return None
