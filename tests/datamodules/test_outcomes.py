import numpy as np

from datamodules.outcomes import outcomes


def scene(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    held, cells = np.zeros((steps, 1, 3), bool), np.full((steps, 1, 8, 2), 4)
    return held, cells, np.zeros((steps, 1), bool), np.zeros((steps, 1), bool)


def test_key_lock_and_gem_of_one_episode_and_an_unfinished_one():
    held, cells, began, solved = scene(9)
    held[2:7, 0, 0], cells[2:7, 0, 0] = True, -1  # blue key at the second action
    cells[4:7, 0, 3] = -1  # its lock at the fourth
    began[7], solved[7] = True, True  # the gem at the seventh, and a new level
    pursued, steps = outcomes(held, cells, began, solved)
    assert pursued[:, 0].tolist() == [0, 0, 3, 3, 6, 6, 6, -1, -1]
    assert steps[:, 0].tolist() == [2, 1, 5, 4, 3, 2, 1, -1, -1]


def test_a_time_out_is_no_gem():
    held, cells, began, solved = scene(4)
    began[2] = True
    held[:2] = True  # keys that the new level takes away, as it brings back what was gone
    cells[:2, 0, 3:6] = -1
    pursued, steps = outcomes(held, cells, began, solved)
    assert (pursued == -1).all()
    assert (steps == -1).all()


def test_against_a_search_forward():
    rng = np.random.default_rng(0)
    length, count = 40, 6
    began = rng.random((length, count)) < 0.08
    solved = rng.random((length, count)) < 0.5
    held, cells = np.zeros((length, count, 3), bool), np.full((length, count, 8, 2), 1)
    for step in range(1, length):
        held[step] = held[step - 1] | (rng.random((count, 3)) < 0.04)
        cells[step] = np.where(rng.random((count, 8, 1)) < 0.04, -1, cells[step - 1])
        held[step][began[step]], cells[step][began[step]] = False, 1
    pursued, steps = outcomes(held, cells, began, solved)
    for slot in range(count):
        for start in range(length):
            touched, pickup = -1, -1
            for step in range(start + 1, length):
                if began[step, slot]:
                    if solved[step, slot]:
                        touched = 6 if touched < 0 else touched
                        pickup = step - start if pickup < 0 else pickup
                    break
                keys = held[step, slot] & ~held[step - 1, slot]
                opened = (cells[step - 1, slot, 3:6, 0] >= 0) & (cells[step, slot, 3:6, 0] < 0)
                events = np.flatnonzero(np.concatenate([keys, opened]))
                if len(events) and touched < 0:
                    touched = int(events[0])
                if keys.any() and pickup < 0:
                    pickup = step - start
            assert (pursued[start, slot], steps[start, slot]) == (touched, pickup)
