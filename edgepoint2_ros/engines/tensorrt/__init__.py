"""TensorRT on NVIDIA GPUs, in fp16: 8.6, 10 and 11, and TensorRT-RTX, which has the same interface.

`engine` has a plan for each image size: `builder` builds it, `plan_cache` keeps it, `plan` runs it. `bindings` imports
TensorRT and CUDA, `gpu` queries the driver.
"""

from edgepoint2_ros.engines.tensorrt.engine import BACKEND, open_engine

__all__ = ['BACKEND', 'open_engine']
