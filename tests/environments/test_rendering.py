import numpy as np

from environments import EnvironmentSettings, VectorEnvironment, render_states


def test_states_are_drawn_as_the_game_shows_them_more_than_fit_at_once() -> None:
    settings = EnvironmentSettings()
    environment = VectorEnvironment(settings, 70)
    for _ in range(5):
        environment.act(np.full(70, 7))
        shown = environment.observe()[1].copy()
    states = environment.get_states()
    environment.close()
    assert np.array_equal(render_states(states, settings), shown)
