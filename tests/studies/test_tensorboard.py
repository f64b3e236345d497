import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from interpretability.films import Film
from studies import Report
from studies.tensorboard import write_events


def test_numbers_figures_and_films_are_read_back(tmp_path):
    frames = np.zeros((3, 24, 32, 3), dtype=np.uint8)
    frames[1] = 255
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    report = Report(
        {"agent/return": 9.5, "agent/undefined": float("nan")}, {}, {"curve": figure}, {"played": Film(frames)}
    )
    write_events(report, tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == {"agent/return": 9.5}
    assert sorted(events.Tags()["images"]) == ["figures/curve", "films/played"]
    image = events.Images("films/played")[0]
    assert (image.width, image.height) == (32, 24)
    film = Image.open(io.BytesIO(image.encoded_image_string))
    assert (film.format, film.n_frames) == ("GIF", 3)
    report.write(tmp_path)  # the figure can be drawn again
    assert (tmp_path / "figures/curve.png").exists()
