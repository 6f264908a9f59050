"""The demo without ROS: camera, extractor and consumer in one process."""

import time
from pathlib import Path

from edgepoint2_ros.demo.figures import Display, Figures
from edgepoint2_ros.extractor import Extractor, ExtractorSettings
from edgepoint2_ros.files import write_image
from edgepoint2_ros.scenes.sources import open_source, play


def run(settings: ExtractorSettings, source: str | None, seconds: float, picture: Path) -> None:
    """Feed the source to the extractor at 30 Hz for some seconds, then print a summary and write the picture.

    Frames that are due while the last one is still being processed are skipped, as by the demo's camera.

    Raises:
        EdgePoint2Error: the source, the model or the backend does not work.
    """
    camera = open_source(source)
    extractor = Extractor(settings)
    print(extractor.description)
    extractor.extract(camera.image(0))  # runtimes compile for the size at the first image
    start = time.time_ns()
    figures = Figures(open_source(source, colour=True), start)
    display, end = Display(figures), time.monotonic() + seconds
    for number, (due, image) in enumerate(play(camera, start)):
        if number >= 2 and time.monotonic() > end:  # a match takes two
            break
        figures.add(due, extractor.extract(image))
        display.update()
    write_image(picture, figures.picture())
    print(f'\n{figures.summary()}\nmatches drawn: {picture}')
