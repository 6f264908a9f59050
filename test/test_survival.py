"""A callback that fails ends no node: it is logged and counted, and all others are served, and itself the next time."""

import itertools
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from diagnostic_msgs.msg import DiagnosticStatus
from nav_msgs.msg import Odometry
from node_rig import ROOT, TIMEOUT, wait_until
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Empty, Header
from test_odometry import MATRIX, Cloud, go

from edgepoint2_ros.messages import encode
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.node.extractor_node import ExtractorNode
from edgepoint2_ros.node.survival import Failures, spin
from edgepoint2_ros.node.visual_odometry_node import VisualOdometryNode, to_quaternion


@pytest.fixture
def peer(ros):
    """A node that speaks with the one under test."""
    node = rclpy.create_node('peer')
    yield node
    node.destroy_node()


@contextmanager
def served(node):
    """Serve a node in a thread as its process does; in the end that thread must still be there."""
    executor, stop = SingleThreadedExecutor(), threading.Event()
    executor.add_node(node)
    thread = threading.Thread(target=spin, args=(executor, node, stop, 0.1))
    thread.start()
    try:
        yield executor
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join()
        executor.shutdown()
        if hasattr(node, 'stop'):
            node.stop()
        node.destroy_node()


def entities(node) -> dict[str, object]:
    """Return all that has a callback in a node, by a name."""
    found = {f'timer {number}': timer for number, timer in enumerate(node.timers)}
    found |= {f'subscription {each.topic_name}': each for each in node.subscriptions}
    found |= {f'service {node.resolve_service_name(each.srv_name)}': each for each in node.services}
    for each in (*node.subscriptions, *node.publishers):
        for handler in each.event_handlers:
            found[f'event {handler.event_type.name} {each.topic_name}'] = handler
    return found


def break_once(node, wanted) -> set[str]:
    """Make each callback whose name is wanted fail when it is called next; return those that have not been, kept up."""
    waiting = set()

    def break_one(name, entity):
        whole = entity.callback

        def fail(*_):
            entity.callback = whole
            waiting.discard(name)
            raise RuntimeError(f'{name} is broken')

        entity.callback = fail
        waiting.add(name)

    for name, entity in entities(node).items():
        if wanted(name):
            break_one(name, entity)
    return waiting


def call_all(node, peer) -> None:
    """Call each service of a node, and wait for no answer."""
    for service in node.services:
        client = peer.create_client(service.srv_type, node.resolve_service_name(service.srv_name))
        assert client.wait_for_service(TIMEOUT)
        client.call_async(service.srv_type.Request())


def ask(peer, service: str, kind, request):
    """Call a service and return its answer."""
    client = peer.create_client(kind, service)
    assert client.wait_for_service(TIMEOUT)
    future = client.call_async(request)
    wait_until(future.done, lambda: rclpy.spin_once(peer, timeout_sec=0.05))
    return future.result()


def interrupt_import(module: str, number: int, **options) -> tuple[int, str]:
    """Run a module's main, with a signal when it begins to import numpy; return the exit code and all it prints."""
    code = f"""
import os, sys
from importlib.abc import MetaPathFinder

class Interrupt(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == 'numpy':
            os.kill(os.getpid(), {int(number)})

sys.meta_path.insert(0, Interrupt())
from {module} import main
sys.exit(main())
"""
    command = [sys.executable, '-c', code]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, **options)
    return process.returncode, process.stdout + process.stderr


def make_node(name: str):
    node = rclpy.create_node(name)
    node.failures = Failures(node)
    return node


def test_a_failure_is_counted_and_told_with_its_place(ros, monkeypatch):
    node, lines = make_node('plain'), []
    monkeypatch.setattr(node.get_logger(), 'error', lines.append)
    for _ in range(3):
        try:
            int('three')
        except ValueError as error:
            node.failures.add(error)
    assert node.failures.count == 3
    assert node.failures.last.startswith("ValueError: invalid literal for int() with base 10: 'three' (")
    assert node.failures.last.endswith(' in test_a_failure_is_counted_and_told_with_its_place)')
    assert lines == [f'a callback failed, the node keeps running (1 so far): {node.failures.last}']
    try:
        to_quaternion(np.eye(2))  # which fails in numpy, called by this package
    except IndexError as error:
        node.failures.add(error)
    assert re.search(r' \(node/frames\.py:\d+ in to_quaternion\)$', lines[1])
    node.destroy_node()


def test_whatever_cannot_even_be_taken_is_served_the_next_time(peer, monkeypatch):
    """Rclpy by itself would wait for the end of that callback for ever, and serve nothing else of the node."""
    node, received, ticks = make_node('taking'), [], []
    subscription = node.create_subscription(Empty, 'taking', received.append, 10)
    node.create_timer(0.02, lambda: ticks.append(0))
    publisher = peer.create_publisher(Empty, 'taking', 10)
    with served(node):
        wait_until(lambda: publisher.get_subscription_count() == 1)
        with monkeypatch.context() as patch:
            patch.setattr(subscription, 'msg_type', object)  # of which no message can be made
            publisher.publish(Empty())
            wait_until(lambda: node.failures.count)
        before = len(ticks)
        wait_until(lambda: len(ticks) > before)
        publisher.publish(Empty())
        wait_until(lambda: received)
    assert 'AttributeError: ' in node.failures.last


def test_the_end_of_ros_is_the_end_of_the_service(tmp_path):
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('ending', context=context)
    node.failures = Failures(node)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    node.create_timer(0.05, lambda: rclpy.shutdown(context=context))
    spin(executor, node, threading.Event())
    assert node.failures.count == 0


@pytest.mark.slow
def test_every_callback_of_the_extractor_may_fail(official_model, photograph, rig, peer):
    official_model('T-32')
    overrides = {'use_sim_time': True, 'image_reliability': 'reliable'}
    node = ExtractorNode(
        namespace='breaking', parameter_overrides=[Parameter(name, value=value) for name, value in overrides.items()]
    )
    assert node.start(lambda: False)
    camera, clock = rig('breaking'), peer.create_publisher(Clock, '/clock', 10)
    gray = np.ascontiguousarray(photograph[:, :, 1])
    with served(node):
        camera.connect()
        wait_until(lambda: clock.get_subscription_count())
        # Of the events those of QoS mismatches: with a publisher, and with a subscriber.
        events = ('REQUESTED_INCOMPATIBLE_QOS /breaking/image', 'OFFERED_INCOMPATIBLE_QOS /breaking/keypoints')
        waiting = break_once(node, lambda name: not name.startswith('event') or name.endswith(events))
        assert sum(name.startswith('event') for name in waiting) == 2
        assert {
            'timer 0',
            'subscription /clock',
            'subscription /breaking/image',
            'subscription /breaking/mask',
        } < waiting
        assert {f'service /breaking/extractor/{name}' for name in ('change_state', 'set_parameters')} < waiting
        failing = len(waiting)
        call_all(node, peer)
        deaf = peer.create_publisher(Image, '/breaking/image', qos_profile_sensor_data)
        qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        peer.create_subscription(KeypointArray, '/breaking/keypoints', lambda message: None, qos)

        def trigger():
            clock.publish(Clock())
            camera.send(gray)
            camera.send_mask(np.ones((480, 640), np.uint8))

        wait_until(lambda: not waiting, trigger)
        peer.destroy_publisher(deaf)
        assert node.failures.count == failing
        status = camera.status('engine', lambda status: status.level == DiagnosticStatus.OK)
        values = {each.key: each.value for each in status.values}
        assert values['failed callbacks'] == str(failing)
        assert 'is broken' in values['last failure']
        # All of it works now.
        camera.received.clear()
        assert len(camera.answer(gray).x) > 300
        assert camera.state() == 'active'
        assert camera.set(border=3)[0].successful
        assert camera.next_stats().masks_received > 0


@pytest.mark.slow
def test_every_callback_of_the_visual_odometry_may_fail(peer):
    node = VisualOdometryNode()
    assert all(result.successful for result in node.set_parameters([Parameter('use_sim_time', value=True)]))
    clock, camera, keypoints = (
        peer.create_publisher(kind, topic, 10)
        for kind, topic in ((Clock, '/clock'), (CameraInfo, 'camera_info'), (KeypointArray, 'keypoints'))
    )
    odometry = []
    peer.create_subscription(Odometry, 'odometry', odometry.append, 100)
    with served(node):
        waiting = break_once(node, lambda name: not name.startswith('event') or name.endswith('QOS /odometry'))
        assert {'subscription /clock', 'subscription /camera_info', 'subscription /keypoints'} < waiting
        assert {'event RCL_PUBLISHER_OFFERED_INCOMPATIBLE_QOS /odometry'} < waiting
        failing = len(waiting)
        call_all(node, peer)
        qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        peer.create_subscription(Odometry, 'odometry', lambda message: None, qos)
        info = CameraInfo(width=640, height=480, k=np.ravel(MATRIX), d=(0.0,) * 5, distortion_model='plumb_bob')
        cloud, number = Cloud(), itertools.count()

        def trigger():
            clock.publish(Clock())
            camera.publish(info)
            keypoints.publish(encode(cloud.look(*go(next(number) / 10))[0], Header(), 'int8'))
            rclpy.spin_once(peer, timeout_sec=0.1)

        wait_until(lambda: not waiting, trigger)
        assert node.failures.count == failing
        wait_until(lambda: odometry, trigger)
        request = GetParameters.Request(names=['start_depth'])
        assert ask(peer, '/visual_odometry/get_parameters', GetParameters, request).values[0].double_value == 1.0


@pytest.mark.parametrize('module', ['visual_odometry', 'tracker'])
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_node_imports_what_it_needs_ends_it_quietly(module, number):
    assert interrupt_import(f'edgepoint2_ros.node.{module}', number) == (0, '')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['extractor', 'visual_odometry'])
def test_no_request_and_no_clock_ends_a_process(name, official_model, peer, tmp_path):
    """What anybody can send: a parameter of a type that does not exist, a time before all time."""
    official_model('T-32')
    module = {'extractor': 'edgepoint2_ros.node'}.get(name, f'edgepoint2_ros.node.{name}')
    command = [sys.executable, '-m', module, '--ros-args', '-p', 'use_sim_time:=true']
    clock = peer.create_publisher(Clock, '/clock', 10)
    log = tmp_path / 'log.txt'
    with open(log, 'w') as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        early = Clock()
        early.clock.sec = -5
        negative = (
            'a callback failed, the node keeps running (1 so far): ValueError: Seconds value must not be negative'
        )
        wait_until(lambda: negative in log.read_text(), lambda: (clock.publish(early), time.sleep(0.1)))
        odd = ParameterMessage(name='rectified', value=ParameterValue(type=99))
        for kind, service in (
            (SetParameters, 'set_parameters'),
            (SetParametersAtomically, 'set_parameters_atomically'),
        ):
            client = peer.create_client(kind, f'/{name}/{service}')
            assert client.wait_for_service(TIMEOUT)
            client.call_async(kind.Request(parameters=[odd]))
        wait_until(lambda: 'ValueError: 99 is not a valid' in log.read_text())
        request = GetParameters.Request(names=['use_sim_time'])
        assert ask(peer, f'/{name}/get_parameters', GetParameters, request).values[0].bool_value
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
