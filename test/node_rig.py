"""What the tests of the node share: the node as a process, and a camera with readers of what the node publishes."""

import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image

from edgepoint2_ros.msg import CameraStats, KeypointArray

ROOT = Path(__file__).parents[1]
TIMEOUT = 30.0


class Process:
    """The node as a process; what it prints is kept in a file."""

    def __init__(self, folder: Path, namespace: str, remap: tuple[str, ...] = (), params_file=None, **values):
        self.log = folder / f'{namespace.replace("/", "_")}.log'
        arguments = [sys.executable, '-m', 'edgepoint2_ros.node', '--ros-args', '-r', f'__ns:=/{namespace}']
        for rule in remap:
            arguments += ['-r', rule]
        if params_file is not None:
            arguments += ['--params-file', str(params_file)]
        for name, value in values.items():
            arguments += ['-p', f'{name}:={str(value).lower() if isinstance(value, bool) else value}']
        with open(self.log, 'a') as log:
            self._process = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output or self._process.poll() is not None)
        assert text in self.output

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End the process as a crash does."""
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self._process.wait(TIMEOUT)
        finally:
            self._process.kill()


class Flood:
    """A camera in a process of its own that publishes large images at best effort as fast as it can, see flood.py."""

    def __init__(self, topic: str, rows: list[int]):
        program = Path(__file__).with_name('flood.py')
        # It takes what the others leave of the CPU: they are to fight for the middleware.
        command = ['nice', '-n', '19', sys.executable, str(program), topic, *map(str, rows)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> 'Flood':
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self) -> None:
        self._say()

    def stop(self) -> int:
        """Stop the flood; return how many images were published, the last ones small and one by one."""
        self._say()
        return int(self._process.stdout.readline())

    def _say(self) -> None:
        self._process.stdin.write('\n')
        self._process.stdin.flush()


class Usage:
    """What a process uses: memory in MB (resident), threads and open files."""

    def __init__(self, pid: int):
        status = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
        self.memory = int(status['VmRSS'].split()[0]) / 1024
        self.threads = int(status['Threads'])
        self.files = len(list(Path(f'/proc/{pid}/fd').iterdir()))

    def __str__(self) -> str:
        return f'{self.memory:.1f} MB, {self.threads} threads, {self.files} files'


class Rig:
    """A camera and a reader of its keypoints in the namespace of one node."""

    def __init__(self, namespace: str, camera: str = '', node: str = 'extractor'):
        self.node = rclpy.create_node(f'rig_{camera}', namespace=namespace)
        self.target = f'/{namespace}/{node}'  # whose services are called
        self._clients = {}
        self.prefix = f'{camera}/' if camera else ''
        self.received = []
        self.stats = []
        self.diagnostics = {}  # the latest status of the node by its task
        self._namespace = namespace
        self.plug_in()
        self.mask = self.node.create_publisher(Image, f'{self.prefix}mask', 10)
        self.compressed = self.node.create_publisher(CompressedImage, f'{self.prefix}image/compressed', 10)
        self.read()
        self.node.create_subscription(CameraStats, f'{self.prefix}stats', self.stats.append, 10)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnose, 10)
        self._stamp = 1_700_000_000

    def _diagnose(self, message) -> None:
        node = f'{self.target}: '
        for status in message.status:
            if status.name.startswith(node):
                self.diagnostics[status.name.removeprefix(node)] = status

    def plug_in(self, qos=100) -> None:
        """Start the camera."""
        self.camera = self.node.create_publisher(Image, f'{self.prefix}image', qos)

    def read(self) -> None:
        """Start the reader of keypoints."""
        self.reader = self.node.create_subscription(KeypointArray, f'{self.prefix}keypoints', self.received.append, 100)

    def unplug(self) -> None:
        """Stop the camera, once all it has sent is there."""
        self.camera.wait_for_all_acked()
        self.node.destroy_publisher(self.camera)

    def connect(self) -> None:
        """Wait until the node is there and active, and subscribed with the reliability that the camera offers."""
        self.wait_until(self.is_connected)

    def is_connected(self) -> bool:
        images = self.camera, self.compressed
        readers = [
            (reader.qos_profile.reliability, publisher.qos_profile.reliability)
            for publisher in images
            for reader in self.node.get_subscriptions_info_by_topic(publisher.topic_name)
        ]
        return (
            len(readers) == 1
            and len(set(readers[0])) == 1
            and sum(publisher.get_subscription_count() for publisher in images) == 1
            and self.mask.get_subscription_count() == 1
            and self.node.count_publishers(self.topic('keypoints')) == 1
        )

    def connect_and_settle(self, pixels: np.ndarray) -> None:
        """Send images until one is answered, and wait for the answers to the others."""
        self.connect()
        self.received.clear()
        while not self.received:
            image = self.send(pixels)
            self.spin(0.5)
        end = time.monotonic() + 5  # the last may have got lost
        while self.received[-1].header != image.header and time.monotonic() < end:
            self.spin(0.1)
        self.spin(0.5)

    def topic(self, name: str) -> str:
        return f'/{self._namespace}/{self.prefix}{name}'

    def _header(self, message, stamp: float | None) -> None:
        if stamp is None:
            self._stamp += 1
            stamp = self._stamp
        message.header.frame_id = 'camera_optical'
        message.header.stamp.sec, message.header.stamp.nanosec = int(stamp), 987_654_321

    def image(self, pixels: np.ndarray, encoding: str = '', stamp: float | None = None, **changes) -> Image:
        """Return pixels (H, W) or (H, W, C) as an image message with a stamp of its own."""
        height, width = pixels.shape[:2]
        image = Image(height=height, width=width, encoding=encoding or {2: 'mono8', 3: 'bgr8'}[pixels.ndim])
        self._header(image, stamp)
        image.step = pixels[0].nbytes
        image.data = array('B', pixels.tobytes())
        for name, value in changes.items():
            setattr(image, name, value)
        return image

    def send(self, *args, **kwargs) -> Image:
        """Publish pixels as an image; see `image` for arguments."""
        image = self.image(*args, **kwargs)
        self.camera.publish(image)
        return image

    def send_mask(self, *args, **kwargs) -> None:
        """Publish pixels as a mask and give it a moment; see `image` for arguments."""
        self.mask.publish(self.image(*args, **kwargs))
        self.spin(0.15)

    def send_compressed(self, data: bytes, format: str = 'jpeg') -> CompressedImage:
        image = CompressedImage(format=format, data=array('B', data))
        self._header(image, None)
        self.compressed.publish(image)
        return image

    def answer(self, *args, **kwargs) -> KeypointArray:
        """Send an image and return the message that answers it; nothing else may come."""
        self.received.clear()
        image = self.send(*args, **kwargs)
        return self.answer_to(image)

    def answer_to(self, image) -> KeypointArray:
        self.wait_until(lambda: self.received)
        assert [message.header for message in self.received] == [image.header]
        return self.received[0]

    def next_stats(self) -> CameraStats:
        """Wait for stats that were made from now on."""
        self.stats.clear()
        self.wait_until(lambda: len(self.stats) >= 2)
        return self.stats[-1]

    def status(self, task: str, condition=lambda status: True):
        """Wait until the diagnostics of a task fulfil a condition and return them."""
        self.diagnostics.clear()
        try:
            self.wait_until(lambda: task in self.diagnostics and condition(self.diagnostics[task]))
        except AssertionError as error:
            raise AssertionError(f'{error}; the last of {task}: {self.diagnostics.get(task)}') from None
        return self.diagnostics[task]

    def call(self, kind, name: str, request):
        """Call one of the node's services."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, f'{self.target}/{name}')
        client = self._clients[name]
        if not client.service_is_ready():
            assert client.wait_for_service(TIMEOUT)
            time.sleep(0.5)  # the service may see the client later than it is seen, and its answer would get lost
        future = client.call_async(request)
        self.wait_until(future.done)
        return future.result()

    def change_state(self, transition: int) -> bool:
        return self.call(ChangeState, 'change_state', ChangeState.Request(transition=Transition(id=transition))).success

    def state(self) -> str:
        return self.call(GetState, 'get_state', GetState.Request()).current_state.label

    def set(self, **values) -> list:
        """Set parameters one by one and return the results."""
        return self.call(SetParameters, 'set_parameters', SetParameters.Request(parameters=_messages(values))).results

    def set_together(self, **values):
        """Set parameters, all or none, and return the result."""
        request = SetParametersAtomically.Request(parameters=_messages(values))
        return self.call(SetParametersAtomically, 'set_parameters_atomically', request).result

    def wait_until(self, condition) -> None:
        wait_until(condition, lambda: rclpy.spin_once(self.node, timeout_sec=0.05))

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self.node, timeout_sec=left)


def _messages(values: dict) -> list:
    return [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]


def end_rigs(rigs) -> None:
    """End the processes of rigs and destroy their nodes."""
    for rig in rigs:
        interrupt(rig.process)
        destroy(rig.node, rig.target)


def interrupt(process: subprocess.Popen) -> None:
    """End a process as Ctrl-C does, so that it takes leave of the middleware."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait()


def destroy(node, peer: str) -> None:
    """Destroy a node once its peer, a node of a process that has ended, is gone from the graph.

    Fast DDS up to 2.14 crashes where an endpoint is destroyed just while one that was announced is matched with it.
    """
    end = time.monotonic() + 2  # a peer that was killed stays in the graph for longer, but announces nothing
    while peer in _names(node) and time.monotonic() < end:
        time.sleep(0.01)
    node.destroy_node()


def _names(node) -> list[str]:
    return [f'{namespace.rstrip("/")}/{name}' for name, namespace in node.get_node_names_and_namespaces()]


def wait_until(condition, meanwhile=lambda: time.sleep(0.02)) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, f'nothing happened for {TIMEOUT} s'
        meanwhile()
