"""Make the README's picture, docs/hero.gif: T-32 beside ORB while the second view turns, shrinks and darkens.

The two photographs are a stereo pair with known depth that comes with scikit-image (Middlebury's motorcycle), so that
every match can be judged: it is right where it lies within 3 pixels of the true place. Run `python docs/make_hero.py`;
it takes scikit-image and Pillow, which `make test` installs.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage import data

from edgepoint2_ros.drawing import draw_matches, write_caption
from edgepoint2_ros.evaluation.methods import EdgePoint2Method, OpenCVMethod

OUTPUT = Path(__file__).with_name('hero.gif')
FRAMES, FRAME_MS = 30, 200  # six seconds
KEYPOINTS = 1000
RIGHT = 3.0  # pixels
SHRINK = 0.5  # of the photographs, in the picture


def main() -> None:
    left, right = (
        cv2.imread(str(Path(data.__file__).with_name(f'motorcycle_{side}.png'))) for side in ('left', 'right')
    )
    disparity = np.load(Path(data.__file__).with_name('motorcycle_disp.npz'))['arr_0']
    methods = {'ORB': OpenCVMethod('ORB', KEYPOINTS), 'EdgePoint2 T-32': EdgePoint2Method('T-32', KEYPOINTS)}
    frames, totals = [], dict.fromkeys(methods, 0)
    for k in range(FRAMES):
        hardness = (1 - np.cos(2 * np.pi * k / FRAMES)) / 2
        view, homography = disturb(right, hardness, np.random.default_rng(k))
        rows = []
        for name, method in methods.items():
            a, b = method.extract(left), method.extract(view)
            matches = method.match(a, b)
            xy_a, xy_b = a.xy[matches[:, 0]], b.xy[matches[:, 1]]
            known, good = judge(xy_a, xy_b, disparity, homography)
            totals[name] += good.sum()
            picture = draw_matches(left, view, xy_a[known], xy_b[known], good[known], lines=150)
            picture = cv2.resize(picture, None, fx=SHRINK, fy=SHRINK, interpolation=cv2.INTER_AREA)
            rows.append(write_caption(picture, f'{name}: {good.sum()} right of {known.sum()} matches'))
        frames.append(Image.fromarray(cv2.cvtColor(np.vstack(rows), cv2.COLOR_BGR2RGB)))
    palette = frames[FRAMES // 4].quantize(64)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    frames[0].save(OUTPUT, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, optimize=True)
    print(f'{OUTPUT}: {OUTPUT.stat().st_size / 1e6:.1f} MB; mean right matches:')
    for name, total in totals.items():
        print(f'  {name}: {total / FRAMES:.0f}')


def disturb(image: np.ndarray, hardness: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the image turned, shrunk, darkened and noisy, and the homography (3, 3) to it."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 25 * hardness, 1 - 0.3 * hardness)
    view = cv2.warpAffine(image, turn, (width, height)).astype(np.float32)
    view *= 1 - 0.75 * hardness
    view += rng.normal(0, 0.5 + 3.5 * hardness, view.shape)
    return np.clip(view, 0, 255).astype(np.uint8), np.vstack([turn, [0, 0, 1]])


def judge(
    xy_a: np.ndarray, xy_b: np.ndarray, disparity: np.ndarray, homography: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return which matches have a known depth, bool (N,), and which of them are right, bool (N,)."""
    column, row = np.rint(xy_a).astype(int).T
    shift = disparity[row, column]
    known = np.isfinite(shift) & (shift > 0)
    places = np.column_stack([xy_a[:, 0] - np.where(known, shift, 0), xy_a[:, 1], np.ones(len(xy_a))])
    error = np.linalg.norm((places @ homography.T)[:, :2] - xy_b, axis=1)
    return known, known & (error <= RIGHT)


if __name__ == '__main__':
    main()
