"""Export of a network: the ONNX models that the runtimes run, and the card that describes them.

``T-32.onnx`` is for CPUs: the network's dense maps (see maps.py), from which edgepoint2_ros.keypoints picks the best;
``T-32.int8.onnx`` is the same in int8.
``T-32.fp16.onnx`` is for TensorRT: everything up to the best K keypoints in one graph (see sparse.py). ``T-32.json`` is
the card. The graphs are written operator by operator rather than traced, because they are the product.
"""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

from edgepoint2_ros.engines.check import CARD_SHAPE, draw_scene, pack
from edgepoint2_ros.engines.onnxruntime import OnnxRuntimeEngine
from edgepoint2_ros.models import CARD_FORMAT, card_path, part_path
from edgepoint2_ros.network.edgepoint2 import EdgePoint2
from edgepoint2_ros.network.maps import build_maps, calibrate
from edgepoint2_ros.network.sparse import MAX_KEYPOINTS, build_sparse


def export_model(
    network: EdgePoint2,
    path: Path,
    max_keypoints: int = MAX_KEYPOINTS,
    subpixel: bool = True,
    card: dict | None = None,
) -> Path:
    """Write the model of ``network`` for CPUs to ``path``, and beside it those in int8 and fp16 and the card (JSON).

    Args:
        network: the network with its weights; it is not changed.
        path: the model's file, ending in ``.onnx``; the folder is made.
        max_keypoints: K, the most keypoints of an image.
        subpixel: refine keypoints by a parabola through the score map.
        card: further entries of the card, such as ``source`` and ``licence``.

    Raises:
        ModelError: max_keypoints is out of range.
    """
    path = Path(path)
    half = build_sparse(network, max_keypoints, subpixel, half=True).SerializeToString()
    data = build_maps(network).SerializeToString()
    int8 = build_maps(network, calibrate(network, _calibration_images())).SerializeToString()
    engine = OnnxRuntimeEngine(data, threads=1, max_keypoints=max_keypoints, subpixel=subpixel)
    entries = {
        'format': CARD_FORMAT,
        'model': network.variant.name,
        'digest': weights_digest(network),
        'max_keypoints': max_keypoints,
        'subpixel': subpixel,
        'sha256': hashlib.sha256(data).hexdigest(),
        'int8_sha256': hashlib.sha256(int8).hexdigest(),
        'fp16_sha256': hashlib.sha256(half).hexdigest(),
        'expected': pack(engine.run(draw_scene(*CARD_SHAPE), np.ones((1, 1), np.uint8))),
        **(card or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # The card goes last and each file replaces what was there in one step: a reader never sees half a model.
    text = json.dumps(entries, indent=2) + '\n'
    for target, content in (
        (path, data),
        (part_path(path, 'int8'), int8),
        (part_path(path, 'fp16'), half),
        (card_path(path), text.encode()),
    ):
        temporary = target.with_name(target.name + '.part')
        temporary.write_bytes(content)
        temporary.replace(target)
    return path


def _calibration_images() -> list[np.ndarray]:
    """Return the drawn scene, sharp and blurred: its maps reach as high as those of photographs."""
    scene = draw_scene(480, 640, 1)
    return [scene, cv2.GaussianBlur(scene, (0, 0), 3)[..., None]]


def weights_digest(network: EdgePoint2) -> str:
    """Return the identity of the weights: 16 hex digits, equal for equal numbers however they were stored."""
    digest = hashlib.sha256(network.variant.name.encode())
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith('num_batches_tracked'):  # counts training steps; no part of the function
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().numpy().astype('<f4').tobytes())
    return digest.hexdigest()[:16]
