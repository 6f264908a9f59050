"""The process of the node extractor: the executable of ``ros2 run edgepoint2_ros extractor``."""

import gc
import os
import signal
import sys
import threading
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM)
GRACE = 3.0  # seconds that work in progress gets at shutdown

# A compressed image that claims to be larger than any supported one must not exhaust the memory, and a damaged one is
# reported by the node, in one line now and then. OpenCV reads both when it is imported.
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(2**24))
os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')


def main(args: list[str] | None = None) -> int:
    """Run the node until Ctrl-C and return the exit code: 0, or 1 if it could not start.

    The node lives in a thread, and this one waits for a signal, so that signals interrupt nothing halfway: all threads
    inherit the block. rclpy's own handlers do not help here: with them its executor occasionally stays asleep, and an
    interrupted import or start-up leaves a traceback.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    sys.setswitchinterval(1e-4)  # seconds; with the default of 5 ms an image waits for whatever the executor does

    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from edgepoint2_ros.node.survival import provide_log_folder

    provide_log_folder()
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # its class differs between distributions: a parameter file that is missing or invalid
        print(f'extractor: {error}', file=sys.stderr)
        return 1
    executor = SingleThreadedExecutor()
    stop = threading.Event()
    codes = []

    def serve() -> None:
        try:
            codes.append(_serve(executor, stop))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=serve, name='node', daemon=True)
    thread.start()
    signal.sigwait(STOP)
    stop.set()
    executor.create_task(lambda: None)  # a task wakes it in every distribution
    thread.join(GRACE)
    if thread.is_alive():
        os._exit(0)  # a model is still being loaded, which cannot be interrupted
    rclpy.try_shutdown()
    return codes[0] if codes else 1


def _serve(executor: Any, stop: threading.Event) -> int:
    """Run the node in ``executor`` until ``stop`` is set and return the exit code."""
    from rclpy.logging import get_logger

    from edgepoint2_ros.node.extractor_node import ExtractorNode
    from edgepoint2_ros.node.survival import spin

    try:
        node = ExtractorNode()
    except Exception as error:  # a parameter of ours, or a name, namespace or parameter that rclpy refuses
        get_logger('extractor').error(str(error))
        return 1
    executor.add_node(node)
    gc.freeze()  # what is loaded by now stays; collecting garbage in it would delay an image by 20 ms
    try:
        ready = node.start(stop.is_set)
        if ready:
            spin(executor, node, stop)
    finally:
        node.stop()
        node.destroy_node()
    return 0 if ready or stop.is_set() else 1


if __name__ == '__main__':
    sys.exit(main())
