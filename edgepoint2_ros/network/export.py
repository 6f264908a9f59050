"""Export of a network: the ONNX models that the runtimes run, and the card that describes them.

``T-32.onnx`` is for CPUs: the network's dense maps (see maps.py), from which edgepoint2_ros.keypoints picks the best;
``T-32.int8.onnx`` is the same in int8. ``T-32.tensorrt.onnx`` is for TensorRT: everything up to the best K keypoints in
one graph (see sparse.py), in fp16. ``T-32.json`` is the card. The graphs are written operator by operator rather than
traced, because they are the product.

    python -m edgepoint2_ros.network.export SOURCE... --output FOLDER

exports again: models, by their cards (.json), or weights (.pth) with the card of their training beside them.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgepoint2_ros.engines.check import CARD_SHAPE, draw_scene, pack
from edgepoint2_ros.engines.onnxruntime import OnnxRuntimeEngine
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.models import CARD_FORMAT, MAX_KEYPOINTS, card_path, format_card, open_model
from edgepoint2_ros.network.edgepoint2 import EdgePoint2
from edgepoint2_ros.network.maps import build_maps, calibrate
from edgepoint2_ros.network.sparse import build_sparse
from edgepoint2_ros.network.weights import load_network, restore_network, weights_digest
from edgepoint2_ros.storage import sha256, write_whole

FORMAT_2 = ('max_keypoints', 'sha256', 'int8_sha256', 'fp16_sha256')  # entries of a card that ``files`` has replaced


def export_model(
    network: EdgePoint2,
    path: Path,
    max_keypoints: int = MAX_KEYPOINTS,
    subpixel: bool = True,
    card: dict[str, Any] | None = None,
) -> Path:
    """Write the model of ``network`` for CPUs to ``path``, and beside it those in int8 and for TensorRT and the card.

    Args:
        network: the network with its weights; it is not changed.
        path: the model's file, ending in ``.onnx``; the folder is created.
        max_keypoints: K, the maximum number of keypoints that TensorRT returns.
        subpixel: refine keypoints by a parabola through the score map.
        card: further entries of the card, such as ``source`` and ``licence``; those that the export writes win.

    Raises:
        ModelError: max_keypoints is out of range.
    """
    path = Path(path)
    scene = draw_scene(480, 640, 1)  # sharp and blurred its maps reach as high as those of photographs
    limits = calibrate(network, [scene, cv2.GaussianBlur(scene, (0, 0), 3)[..., None]])
    contents: dict[str, bytes] = {}
    files: dict[str, dict[str, str | int]] = {}
    for suffix, precision, model in (
        ('.onnx', 'fp32', build_maps(network)),
        ('.int8.onnx', 'int8', build_maps(network, limits)),
        ('.tensorrt.onnx', 'fp16', build_sparse(network, max_keypoints, subpixel, half=True)),
    ):
        contents[suffix] = model.SerializeToString()
        inputs, outputs = (', '.join(end.name for end in ends) for ends in (model.graph.input, model.graph.output))
        files[suffix] = {
            'interface': f'{inputs} -> {outputs}',
            'precision': precision,
            'sha256': sha256(contents[suffix]),
        }
    files['.tensorrt.onnx']['max_keypoints'] = max_keypoints
    engine = OnnxRuntimeEngine(contents['.onnx'], threads=1, subpixel=subpixel)
    entries = {
        'format': CARD_FORMAT,
        'model': network.variant.name,
        'digest': weights_digest(network),
        'subpixel': subpixel,
        'files': files,
        'expected': pack(engine.run(draw_scene(*CARD_SHAPE), np.ones((1, 1), np.uint8), max_keypoints)),
    }
    contents['.json'] = format_card({**entries, **(card or {}), **entries})
    # The card goes last and each file replaces what was there in one step: a reader never sees half a model.
    for suffix, content in contents.items():
        write_whole(path.with_suffix(suffix), content)
    return path


def export_again(source: Path, folder: Path, card: dict[str, Any] | None = None) -> Path:
    """Export a model (.json) or weights (.pth) again; the card beside them is kept, except for the entries of ``card``.

    Raises:
        ModelError: the source is missing, corrupt or not what its name says.
    """
    if source.suffix == '.json':
        model = open_model(source.with_suffix('.onnx'))
        network, before = restore_network(model), model.card
        max_keypoints, subpixel = model.max_keypoints, model.subpixel
    else:
        network, before, max_keypoints, subpixel = load_network(source), {}, MAX_KEYPOINTS, True
        if card_path(source).exists():
            before = json.loads(card_path(source).read_text(encoding='utf-8'))
    before = {key: value for key, value in before.items() if key not in FORMAT_2}
    return export_model(network, folder / f'{network.variant}.onnx', max_keypoints, subpixel, before | (card or {}))


def main() -> None:
    """Export the models given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sources', nargs='+', type=Path, metavar='SOURCE', help='model cards (.json) or weights (.pth)')
    parser.add_argument('--output', type=Path, required=True, metavar='FOLDER')
    parser.add_argument('--card', nargs='*', default=[], metavar='KEY=VALUE', help='card entries to add or change')
    options = parser.parse_args()
    odd = next((entry for entry in options.card if '=' not in entry), None)
    if odd is not None:
        parser.error(f'--card: expected KEY=VALUE, got {odd}')
    try:
        for source in options.sources:
            print(export_again(source, options.output, dict(entry.split('=', 1) for entry in options.card)))
    except EdgePoint2Error as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
