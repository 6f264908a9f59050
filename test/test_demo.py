"""The demo: its sources, and the whole of it as three processes over DDS."""

import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from edgepoint2_ros.cli import main
from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.scenes.sources import VirtualFlight, open_source

pytest.importorskip('skimage', reason='scikit-image, which ships photographs, is not installed')


def test_the_flight_shows_photographs_whose_motion_is_known_to_the_pixel():
    flight = VirtualFlight()
    first, second = flight.image(30), flight.image(40)
    assert first.shape == (480, 640)
    mapped = cv2.warpPerspective(first, flight.motion(30, 40), (640, 480), borderValue=0)
    seen = cv2.warpPerspective(np.full_like(first, 255), flight.motion(30, 40), (640, 480)) == 255
    assert seen.mean() > 0.5
    difference = np.abs(mapped.astype(int) - second)[seen]
    assert np.median(difference) <= 2
    assert np.median(np.abs(first.astype(int) - second)[seen]) > 5


def test_the_flight_moves_as_a_robots_camera_would():
    flight = VirtualFlight()
    centre = np.array([320, 240, 1.0])
    moved = np.array([flight.motion(k, k + 1) @ centre for k in range(900)])
    steps = np.linalg.norm(moved[:, :2] / moved[:, 2:] - centre[:2], axis=1)
    assert steps.max() < 20


def test_a_folder_is_shown_by_name_over_and_over(tmp_path):
    for k in range(3):
        cv2.imwrite(str(tmp_path / f'{k}.png'), np.full((64, 64), 80 * k, np.uint8))
    folder = open_source(str(tmp_path))
    assert [folder.image(k)[0, 0] for k in range(4)] == [0, 80, 160, 0]
    assert folder.motion(0, 1) is None


def test_a_folder_of_thermal_images_is_shown_with_their_contrast(tmp_path):
    gradient = np.tile(np.arange(64, dtype=np.uint16), (64, 1))
    cv2.imwrite(str(tmp_path / 'thermal.png'), 7000 + gradient)
    for colour, shape in ((False, (64, 64)), (True, (64, 64, 3))):
        image = open_source(str(tmp_path), colour).image(0)
        assert image.shape == shape
        assert (image.min(), image.max()) == (0, 255)


def test_a_video_is_shown_over_and_over(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'video.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 30, (64, 64))
    for k in range(3):
        writer.write(np.full((64, 64, 3), 80 * k, np.uint8))
    writer.release()
    video = open_source(str(tmp_path / 'video.avi'))
    assert [round(video.image(k)[0, 0] / 80) for k in (0, 1, 2, 3, 2)] == [0, 1, 2, 0, 2]


def test_a_picture_that_was_named_is_not_written_over(tmp_path, capsys):
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    (tmp_path / 'matches.png').write_text('precious')
    assert main(['demo', '--picture', str(tmp_path / 'matches.png')]) == 1
    assert 'matches.png already exists' in capsys.readouterr().err


def test_a_source_that_cannot_be_shown_is_refused_in_words(tmp_path):
    with pytest.raises(ImageError, match='holds no images'):
        open_source(str(tmp_path))
    with pytest.raises(ImageError, match='no folder of images or video file'):
        open_source(str(tmp_path / 'missing'))
    (tmp_path / 'text.mp4').write_text('no video')
    with pytest.raises(ImageError, match='is not a video'):
        open_source(str(tmp_path / 'text.mp4'))


def run_demo(*arguments):
    command = [sys.executable, '-m', 'edgepoint2_ros.cli', 'demo', '--seconds', '4', *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


needs_ros = pytest.mark.skipif(
    find_spec('rclpy') is None or find_spec('edgepoint2_ros.msg') is None, reason='ROS 2 or the messages are missing'
)


@pytest.mark.slow
@needs_ros
@pytest.mark.parametrize('model', ['T-32', 'E-64'])
def test_the_known_motion_is_recovered_over_dds(official_model, tmp_path, model):
    official_model(model)
    picture = tmp_path / 'matches.png'
    done = run_demo('--model', model, '--picture', str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = re.search(r'^(\d+) frames: .* inliers +([\d.]+)% \(within 3 px of the known motion\)', done.stdout, re.M)
    assert summary, done.stdout
    assert int(summary[1]) > 0
    assert float(summary[2]) >= 80
    assert cv2.imread(str(picture)).shape[1] == 1280
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_without_ros_the_same_is_shown_in_one_process(official_model, tmp_path):
    official_model('T-32')
    picture = tmp_path / 'matches.png'
    code = (
        "import sys; sys.modules['rclpy'] = None; from edgepoint2_ros.cli import main; "
        f"sys.exit(main(['demo', '--no-ros', '--seconds', '2', '--picture', {str(picture)!r}]))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = re.search(r'^(\d+) frames: .* inliers +([\d.]+)% \(within 3 px of the known motion\)', done.stdout, re.M)
    assert summary, done.stdout
    assert int(summary[1]) >= 2
    assert float(summary[2]) >= 80
    assert cv2.imread(str(picture)).shape[1] == 1280


def test_without_ros_errors_are_one_line(tmp_path, capsys):
    for arguments, message in (
        (['--model', 'T-64'], 'unknown model'),
        (['--source', str(tmp_path)], 'holds no images'),
        (['--backend', 'tpu'], 'unknown backend'),
    ):
        assert main(['demo', '--no-ros', *arguments]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
@needs_ros
def test_the_consumer_reads_reliably(ros, tmp_path):
    import rclpy
    from rclpy.qos import ReliabilityPolicy

    node = rclpy.create_node('looker')
    command = [
        sys.executable,
        '-m',
        'edgepoint2_ros.demo.consumer',
        '--start',
        '0',
        '--picture',
        str(tmp_path / 'm.png'),
    ]
    consumer = subprocess.Popen(command)
    try:
        end = time.monotonic() + 30
        while not (readers := node.get_subscriptions_info_by_topic('keypoints')):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert [reader.qos_profile.reliability for reader in readers] == [ReliabilityPolicy.RELIABLE]
    finally:
        consumer.kill()
        consumer.wait()
        node.destroy_node()


@pytest.mark.slow
@needs_ros
@pytest.mark.parametrize('delay', [1.0, 2.0, 4.0])
def test_ctrl_c_ends_all_three_processes_quietly(official_model, tmp_path, delay):
    official_model('T-32')
    command = [sys.executable, '-m', 'edgepoint2_ros.cli', 'demo', '--picture', str(tmp_path / 'matches.png')]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(delay)
    demo.send_signal(signal.SIGINT)
    output = demo.communicate(timeout=30)[0]  # returns only when all that hold its pipe have ended
    assert demo.returncode in (0, 130), output  # 130 as any command: while it still imports
    assert 'Traceback' not in output


@pytest.mark.slow
@needs_ros
def test_errors_of_the_demo_are_one_line(official_model, tmp_path):
    official_model('T-32')
    for arguments, message in (
        (['--model', 'T-64'], 'unknown model'),
        (['--source', str(tmp_path)], 'holds no images'),
        (['--backend', 'tpu'], 'a process ended early'),
    ):
        done = run_demo(*arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert 'Traceback' not in done.stderr
