import numpy as np

from edgepoint2_ros.drawing import BAD, GOOD, draw_keypoints, draw_matches, draw_points, draw_tracks, write_caption
from edgepoint2_ros.features import Features


def features(xy) -> Features:
    count = len(xy)
    scores = np.linspace(5, -5, count, dtype=np.float32)
    return Features(np.float32(xy).reshape(-1, 2), scores, np.ones((count, 32), np.float32), (200, 100), 'T-32', 'a')


def test_keypoints_are_drawn_where_they_are_and_the_image_stays():
    image = np.zeros((100, 200), np.uint8)
    picture = draw_keypoints(image, features([[50, 30], [150, 70]]))
    assert picture.shape == (100, 200, 3)
    rows, columns = np.nonzero(picture.any(axis=2))
    assert {
        (46 <= x <= 54 and 26 <= y <= 34) or (146 <= x <= 154 and 66 <= y <= 74) for x, y in zip(columns, rows)
    } == {True}
    assert not image.any()


def test_an_image_without_keypoints_is_drawn_as_it_is():
    image = np.full((100, 200, 3), 9, np.uint8)
    np.testing.assert_array_equal(draw_keypoints(image, features([])), image)


def test_points_are_dots_from_blue_to_red():
    picture = draw_points(np.zeros((100, 200), np.uint8), np.array([[50.2, 30], [150, 69.8]]), np.array([0, 1.2]))
    blue, _, red = picture[30, 50].astype(int)
    assert blue > red
    blue, _, red = picture[70, 150].astype(int)
    assert red > blue
    assert not draw_points(np.zeros((10, 10), np.uint8), np.zeros((0, 2)), np.zeros(0)).any()


def test_matches_are_lines_between_the_two_images_good_ones_green():
    first, second = np.zeros((100, 200), np.uint8), np.zeros((80, 120, 3), np.uint8)
    ends = np.float32([[10, 20], [10, 60]])
    picture = draw_matches(first, second, ends, ends, np.array([True, False]))
    assert picture.shape == (100, 320, 3)
    assert picture[20, 100].argmax() == np.argmax(GOOD)
    assert picture[60, 100].argmax() == np.argmax(BAD)


def test_no_matches_give_the_plain_pair():
    nothing = np.empty((0, 2), np.float32)
    assert not draw_matches(*[np.zeros((10, 10), np.uint8)] * 2, nothing, nothing, np.empty(0, bool)).any()


def test_a_caption_stands_above_the_picture():
    picture = write_caption(np.zeros((50, 300, 3), np.uint8), 'words')
    assert picture.shape == (82, 300, 3)
    assert picture[:32].max() > 200  # how bright the thin strokes are depends on OpenCV's version


def test_tracks_are_drawn_along_the_places_where_they_were():
    history = [
        (np.array([1, 2], np.uint64), np.float32([[20, 30], [150, 70]])),
        (np.array([1], np.uint64), np.float32([[60, 30]])),
        (np.array([3, 1], np.uint64), np.float32([[20, 80], [100, 30]])),
    ]
    picture = draw_tracks(np.zeros((100, 200), np.uint8), history)
    for x in range(20, 101):
        assert picture[30, x].any()
    assert picture[80, 20].any()
    assert not picture[70, 150].any()  # this one is gone
    blue, _, red = picture[30, 60].astype(int)
    assert red > blue  # seen in all images
    blue, _, red = picture[80, 20].astype(int)
    assert blue >= red
    shorter = draw_tracks(np.zeros((100, 200), np.uint8), history, trail=1)
    assert not shorter[30, 40].any()
    assert shorter[30, 80].any()


def test_an_image_without_tracks_is_drawn_as_it_is():
    image = np.full((100, 200, 3), 9, np.uint8)
    for history in ([], [(np.zeros(0, np.uint64), np.zeros((0, 2)))]):
        np.testing.assert_array_equal(draw_tracks(image, history), image)
