import numpy as np

from environments import EnvironmentSettings
from interpretability import choice_film
from interpretability.choices import Choices
from interpretability.episodes import first_states
from interpretability.replay import replay


def test_each_arm_is_shown_as_it_was_played(monkeypatch):
    """Tiles hold the frames that replaying one state alone gives, in the order of states and arms."""
    settings = EnvironmentSettings()
    states = first_states([0, 1], settings)
    shown = []

    def keep(replays, captions, max_steps):
        shown.extend(zip(replays, captions, strict=True))

    monkeypatch.setattr(choice_film, "film_of_replays", keep)
    right, up = [7, 7, 7], [5, 5]
    played = {
        "one": Choices(np.array([0, -1]), np.array([3, 2]), [b"", b""], [right, up]),
        "other": Choices(np.array([9, 3]) % 7, np.array([2, 3]), [b"", b""], [up, right]),
    }
    choice_film.choice_film(states, played, settings)
    assert [words.split(":")[0] for _, words in shown] == ["one", "other", "one", "other"]
    assert [words for _, words in shown][:3:2] == ["one: blue key", "one: nothing"]
    for (film, _), (row, actions) in zip(shown, [(0, right), (0, up), (1, up), (1, right)], strict=True):
        expected = replay(row, actions, settings, start=states[row])
        np.testing.assert_array_equal(film.frames, expected.frames)


def test_films_have_a_tile_a_maze_and_arm():
    settings = EnvironmentSettings()
    states = first_states([0, 1], settings)
    film = choice_film.film_of_actions(states, {"a": [[7], [7]], "b": [[5], [5]]}, {"a": "xy", "b": "zw"}, settings)
    assert film.frames.shape[2] == 4 * (192 + 10) + 10
