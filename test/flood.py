"""A camera that floods the middleware: images of 4 kB to 4 MB at best effort, one after another as fast as they go.

    flood.py TOPIC ROWS...

Images have 1024 columns of 4 bytes and as many rows as one of ROWS, by chance; 0 stands for a small image, which goes
in one piece. A byte on the input starts the flood. Another one ends it: some small images follow in peace, so that the
middleware knows what it has lost before them, and the number of all images so far is printed.
"""

import os
import random
import select
import sys
import time
from array import array

import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

COLUMNS = 1024


def make_image(rows: int) -> Image:
    if rows == 0:
        return Image(width=64, height=64, step=64, encoding='mono8', data=array('B', bytes(64 * 64)))
    data = array('B', bytes(rows * COLUMNS * 4))
    return Image(width=COLUMNS, height=rows, step=COLUMNS * 4, encoding='bgra8', data=data)


def main() -> None:
    topic, *rows = sys.argv[1:]
    rclpy.init()
    publisher = rclpy.create_node('flood').create_publisher(Image, topic, qos_profile_sensor_data)
    chance = random.Random(0)
    images = [make_image(int(each)) for each in rows]
    sent = 0
    command = sys.stdin.fileno()  # not through a buffer, which would hide the next byte from select
    while os.read(command, 1):
        while not select.select([command], [], [], 0)[0]:
            publisher.publish(chance.choice(images))
            sent += 1
        os.read(command, 1)
        for _ in range(10):
            time.sleep(0.1)
            publisher.publish(make_image(0))
            sent += 1
        print(sent, flush=True)


if __name__ == '__main__':
    main()
