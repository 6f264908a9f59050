"""The official weights: their files, where they are searched for, and how models are made from them.

They belong to the authors of EdgePoint2 (HITCSC/EdgePoint2, MIT licence, Copyright (c) 2024 HITCSC-Robotics).
"""

import json
import os
import urllib.request
from pathlib import Path

from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.models import MAX_KEYPOINTS, Model, card_path, find_model, is_shipped, models_directory, open_model
from edgepoint2_ros.models.variants import Variant, find_variant
from edgepoint2_ros.storage import data_directory, sha256, write_whole

UPSTREAM = 'https://raw.githubusercontent.com/HITCSC/EdgePoint2/c589a5784b3f3fe712e77fad046cc6adf61c1aa7/weights/'
LICENCE = 'MIT, Copyright (c) 2024 HITCSC-Robotics'
DIRECTORY_VARIABLE = 'EDGEPOINT2_OFFICIAL_WEIGHTS'
TIMEOUT = 30.0  # seconds without an answer

SHA256 = {
    'E32': 'e93ff3a5bd9f331384dfc776bc47ff78887c8569454726c27078db825df72c1f',
    'E48': '9c411c2f5ee20a46a9d32b04e40411e625c1f3438f97a9df3de06ce5c0ec38a9',
    'E64': '968d0bfae2c3f89a11092750160c90862b2b9c5b022e9aef12f97376b61cbdfe',
    'L32': '8bd270c75694d2c1fa85bb2c98d29528e048ff373a96cc1c194315e100fd66b0',
    'L48': 'a31f82b11c3c8354cb20e018ec03a68ed482c4b980b8f173f604e3279d8254d7',
    'L64': 'df0bef95b51d02f2e29e01ccf2a1e45630a50af20593dba362d7d88e104e223f',
    'M32': 'e2f4f870b19145502d2dabc7ea14063d77c5ee529f97e858935386f6ca3c0821',
    'M48': '3a92fc9a745b92368fc391983fb566d5c9239f25e77b95c7c4df872e411ff8d7',
    'M64': 'eaa1939ef34f26229182cc99a9ce91fbc1d787cd9eddf5d26263626ba1ad8dc6',
    'S32': '92b9099f8e0c066b988be95fb537d7904b9cf4a2e4f860f073ea3c407905dcde',
    'S48': '44ac8bee2a0a94335af3b043187a995c6d5b3ef2acad6a0de69e1a1aa2db75aa',
    'S64': 'a2c7737a85844921a0fded7225cf48c5f596b7eff130abc8711ee5ae5017f097',
    'T32': 'c88b76d2b05cb19de7314a108042d05688424d9a9a3abed97c778078e676cfdc',
    'T48': '6871142455b685674704046b8a0a4aa26248eacd86d4b7cc30b790b9eeda7779',
}


def file_name(variant: Variant) -> str:
    """Return the authors' name for a variant's file, for example ``T32.pth``."""
    return f'{variant.size}{variant.descriptor_size}.pth'


def find_weights(variant: Variant) -> Path | None:
    """Return the official file of a variant on this machine, or None.

    Searched for in the folder named by $EDGEPOINT2_OFFICIAL_WEIGHTS, in the user's data directory, and in
    ``../shared/official_weights`` beside a checkout.
    """
    folders = [data_directory() / 'weights', Path(__file__).parents[3] / 'shared' / 'official_weights']
    if os.environ.get(DIRECTORY_VARIABLE):
        folders.insert(0, Path(os.path.expanduser(os.environ[DIRECTORY_VARIABLE])))
    for folder in folders:
        if os.path.isfile(folder / file_name(variant)):
            return folder / file_name(variant)
    return None


def download_weights(variant: Variant) -> Path:
    """Fetch the official file of a variant into the user's data directory and return its path.

    Raises:
        ModelError: it cannot be reached, or the download is not the official file.
    """
    name = file_name(variant)
    target = data_directory() / 'weights' / name
    try:
        with urllib.request.urlopen(UPSTREAM + name, timeout=TIMEOUT) as answer:
            content = answer.read()
    except OSError as error:
        raise ModelError(
            f'the official weights of {variant} cannot be downloaded ({error}): put {name} from '
            f'HITCSC/EdgePoint2 into a folder and set {DIRECTORY_VARIABLE} to it'
        ) from None
    digest = sha256(content)
    if digest != SHA256[target.stem]:
        raise ModelError(f'{UPSTREAM}{name} is not the official file: its SHA-256 is {digest}')
    write_whole(target, content)
    return target


def import_weights(
    path: Path, custom: bool = False, max_keypoints: int = MAX_KEYPOINTS, subpixel: bool = True
) -> Model:
    """Make a model from a file of weights, in the user's data directory; needs torch and onnx.

    Args:
        path: a state dict with the reference's names (``.pth``).
        custom: allow a file that is not one of the official ones; its model is named after the file.
        max_keypoints: K, the maximum number of keypoints that TensorRT returns.
        subpixel: refine keypoints by a parabola through the score map.

    Raises:
        ModelError: the file is missing, corrupt, not official (unless ``custom``), a model was made from another file
            of its name before, or torch or onnx is missing.
    """
    path = Path(path)
    try:
        digest = sha256(path.read_bytes())
    except OSError as error:
        raise ModelError(f'{path} cannot be read: {error.strerror}') from None
    name = next((name for name, known in SHA256.items() if known == digest), None)
    if name is None and not custom:
        raise ModelError(
            f'{path} is not one of the 14 official files: its SHA-256 is {digest}; '
            f'if it holds weights of your own, say so with --custom'
        )
    try:
        from edgepoint2_ros.network.export import export_model
        from edgepoint2_ros.network.weights import load_network
    except ImportError as error:
        raise ModelError(
            f'making a model needs torch and onnx ({error}): pip install "edgepoint2_ros[models]"'
        ) from None
    if name is None:
        target = models_directory('custom') / f'{path.stem}.onnx'
        if target.exists() and _source(target) != digest:
            raise ModelError(f'{target} already exists, made from another file: rename {path}, or remove that model')
        card = {'weights': 'custom', 'source': path.name}
        network = load_network(path)
    else:
        variant = find_variant(name)
        target = models_directory('official') / f'{variant}.onnx'
        card = {'weights': 'official', 'source': f'HITCSC/EdgePoint2, {name}.pth', 'licence': LICENCE}
        network = load_network(path, variant)
    return open_model(export_model(network, target, max_keypoints, subpixel, {**card, 'source_sha256': digest}))


def _source(model: Path) -> str:
    """Return the SHA-256 of the weights file that a model was made from, '' if its card does not say."""
    try:
        return json.loads(card_path(model).read_text(encoding='utf-8'))['source_sha256']
    except (OSError, ValueError, KeyError, TypeError):
        return ''


def provide_model(variant: Variant) -> Model:
    """Return the shipped model of a variant, else the official one, made or downloaded first if necessary."""
    try:
        return find_model(variant.name)
    except ModelError:
        if is_shipped(variant):
            raise
        return import_weights(find_weights(variant) or download_weights(variant))
