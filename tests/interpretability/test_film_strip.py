import numpy as np

from environments import EnvironmentSettings
from interpretability.film_strip import activation_course, draw_film_strip
from interpretability.observed_episode import Arm, ObservedEpisode
from interpretability.replay import replay


def episode(steps: int, arms: int) -> ObservedEpisode:
    played = replay(3, [7] * steps, EnvironmentSettings())
    rng = np.random.default_rng(0)
    maps = [
        {"conv4a": rng.random((steps, 3, 8, 8), np.float32), "sae": rng.random((steps, 2, 8, 8), np.float32)}
        for _ in range(arms)
    ]
    blank = np.zeros((steps, 10), np.float32)
    names = ("untouched", "edited")
    found = [Arm(name, blank, blank[:, 0], own) for name, own in zip(names, maps, strict=False)]
    return ObservedEpisode(played, {"conv4a": [5, 0, 31], "sae": [100, 2]}, found)


def test_every_unit_has_its_course_and_frames_stand_over_their_steps() -> None:
    shown = episode(30, 2)
    figure = draw_film_strip(shown, "a level")
    strip, *panels = figure.axes
    assert len(strip.images) == 14
    assert np.array_equal(strip.images[-1].get_array(), shown.replay.frames[-1])
    assert len(panels) == 2
    lines = [line for line in panels[0].lines if len(line.get_xdata()) == 30]
    assert len(lines) == 6
    expected = shown.arms[1].maps["conv4a"][12, 2].max()
    assert lines[5].get_ydata()[12] == expected == activation_course(shown, "conv4a", 1)[12, 2]
    assert [text.get_text() for text in panels[1].get_legend().get_texts()] == ["100", "2"]


def test_an_episode_shorter_than_the_strip_shows_every_frame() -> None:
    assert len(draw_film_strip(episode(3, 1), "short").axes[0].images) == 3
