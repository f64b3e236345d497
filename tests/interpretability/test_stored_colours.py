from pathlib import Path

import pytest
import torch

from environments import EnvironmentSettings
from interpretability import ColourMoments, ColourStatistics, stored_colours
from interpretability.stored_colours import game_colours
from networks import read_weights

HEIST = EnvironmentSettings()


@pytest.fixture(autouse=True)
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The games that colours were fitted for; on few frames."""
    games: list[str] = []
    fit = stored_colours._fit

    def counted(settings: EnvironmentSettings) -> ColourStatistics:
        games.append(settings.game)
        return fit(settings)

    monkeypatch.setattr(stored_colours, "_FRAMES", 128)
    monkeypatch.setattr(stored_colours, "_fit", counted)
    return games


def whole(found: ColourStatistics) -> torch.Tensor:
    assert found.magnitude is not None
    return torch.cat([found.mean, found.covariance.flatten(), found.magnitude.flatten()])


def test_they_are_fitted_once_and_again_where_the_file_is_not_theirs(tmp_path: Path, fitted: list[str]) -> None:
    state = torch.get_rng_state()
    first = game_colours(HEIST, tmp_path)
    elsewhere = game_colours(EnvironmentSettings(start_level=7, num_levels=3), tmp_path)  # the range does not matter
    assert fitted == ["heist"]
    assert whole(first).equal(whole(elsewhere))
    (path,) = tmp_path.iterdir()
    other = game_colours(EnvironmentSettings("maze"), tmp_path)
    assert fitted == ["heist", "maze"]
    assert not other.mean.allclose(first.mean, atol=0.01)
    data, known = bytearray(path.read_bytes()), read_weights(path)[1]["hash"]
    for damaged in (bytes(data[: len(data) // 2]), bytes(data[:-1]) + bytes([data[-1] ^ 1])):
        path.write_bytes(damaged)
        assert whole(game_colours(HEIST, tmp_path)).equal(whole(first))
        assert read_weights(path)[1]["hash"] == known, "mended"
    (maze,) = set(tmp_path.iterdir()) - {path}
    path.write_bytes(maze.read_bytes())  # whole, but of another game
    assert whole(game_colours(HEIST, tmp_path)).equal(whole(first))
    assert fitted == ["heist", "maze", "heist", "heist", "heist"]
    assert torch.get_rng_state().equal(state)


def test_without_a_folder_nothing_is_kept_and_the_result_is_the_same(tmp_path: Path, fitted: list[str]) -> None:
    assert whole(game_colours(HEIST, None)).equal(whole(game_colours(HEIST, tmp_path)))
    assert fitted == ["heist", "heist"]


def test_pixels_of_the_game_have_unit_covariance_once_whitened(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    update = ColourMoments.update

    def noted(self: ColourMoments, frames: torch.Tensor) -> None:
        seen.append(frames)
        update(self, frames)

    monkeypatch.setattr(ColourMoments, "update", noted)
    whitened = game_colours(HEIST, None).whiten(torch.cat(seen).float() / 255).reshape(-1, 3)
    torch.testing.assert_close(whitened.T.cov(), torch.eye(3, dtype=torch.float64), atol=1e-2, rtol=0)
    assert len({frame.numpy().tobytes() for frame in torch.cat(seen)}) > 120, "of many levels"
