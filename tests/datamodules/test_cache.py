import errno
import os
import shutil
import signal
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from datamodules import cache as cache_module
from datamodules.cache import ActivationCache, refuse_if_too_large, statistics
from datamodules.recorder import Rows

Usage = namedtuple("Usage", "total used free")


class ToyRecorder:
    """Makes rows without playing: what the cache does with them is the same."""

    taps = ("conv4a",)
    frames_per_block = 100
    forks = False

    def __init__(self, seed: int = 0, interrupt_at: int | None = None) -> None:
        self.seed, self.interrupt_at = seed, interrupt_at
        self.made: list[int] = []

    def description(self) -> dict[str, int]:
        return {"seed": self.seed}

    def frame_bytes(self) -> int:
        return 4 * 8 * 2 + 4 * 4

    def block(self, index: int, frames: int, progress: Callable[[int], object]) -> Rows:
        if index == self.interrupt_at:
            raise KeyboardInterrupt
        self.made.append(index)
        progress(frames)
        noise = torch.Generator().manual_seed(self.seed * 1000 + index)
        return {
            "activations/conv4a": torch.randn(frames * 4, 8, generator=noise).relu().bfloat16(),
            "levels": torch.arange(frames * 4, dtype=torch.int32) + index * 1000,
        }

    def close(self) -> None: ...


class ForkingToy(ToyRecorder):
    """Blocks of it are made in other processes, which say so in the rows."""

    forks = True

    def block(self, index: int, frames: int, progress: Callable[[int], object]) -> Rows:
        assert torch.get_num_threads() == 1
        rows = super().block(index, frames, progress)
        return rows | {"process": torch.full_like(rows["levels"], os.getpid())}


def make(folder: Path, recorder: ToyRecorder | None = None, frames: int = 350) -> ActivationCache:
    return ActivationCache(folder, "training", recorder or ToyRecorder(), frames)  # type: ignore[arg-type]


def equal(one: list[Rows], other: list[Rows]) -> bool:
    return len(one) == len(other) and all(
        set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(one, other, strict=True)
    )


def shards(cache: ActivationCache) -> list[Path]:
    return sorted(cache.folder.glob("*.safetensors"))


def test_builds_once_and_reads_back(tmp_path: Path) -> None:
    recorder = ToyRecorder()
    cache = make(tmp_path, recorder)
    assert cache.missing_bytes() == 350 * recorder.frame_bytes()
    cache.build()
    assert recorder.made == [0, 1, 2, 3]
    assert cache.shard_frames == [100, 100, 100, 50]
    again = ToyRecorder()
    found = make(tmp_path, again)
    found.build()
    assert again.made == []
    assert equal(found.open(), cache.open())
    rows = recorder.block(2, 100, lambda frames: None)
    assert torch.equal(found.open()[2]["activations/conv4a"], rows["activations/conv4a"])


@pytest.fixture
def two_threads() -> Iterator[None]:
    """A machine that has two, so that two processes record."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_processes_make_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None) -> None:
    told: list[float] = []

    class Bar(tqdm):  # type: ignore[type-arg]
        def update(self, n: float | None = 1) -> bool | None:
            told.append(n or 0)
            return super().update(n)

    monkeypatch.setattr(cache_module, "tqdm", Bar)
    before = torch.get_rng_state()
    recorder = ForkingToy()
    cache = make(tmp_path / "forked", recorder, frames=650)
    cache.build()
    assert recorder.made == []
    assert sorted(told) == [50, *[100] * 6]
    assert torch.equal(torch.get_rng_state(), before)
    opened = cache.open()
    makers = {int(shard.pop("process")[0]) for shard in opened}
    assert len(makers) == 2
    assert os.getpid() not in makers
    alone = make(tmp_path, frames=650)
    alone.build()
    assert equal(opened, alone.open())


def test_what_stops_one_of_two_processes_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    def full(tensors: Rows, path: Path) -> None:
        if "00003" in path.name:
            end = time.monotonic() + 60
            while 0 in make(tmp_path, ForkingToy(), frames=650).missing() and time.monotonic() < end:
                time.sleep(0.01)  # the other process may not be done with the first shard
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(cache_module, "save_file", full)
    with pytest.raises(ValueError, match=r"^\S+shard-00003-100\.safetensors could not be written .*No space left"):
        make(tmp_path, ForkingToy(), frames=650).build()
    monkeypatch.undo()
    cache = make(tmp_path, ForkingToy(), frames=650)
    assert 0 not in cache.missing()
    assert 3 in cache.missing()
    cache.build()
    assert not cache.missing()
    assert not list(cache.folder.glob("*.partial"))


def test_a_recording_process_that_is_killed_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    def die(tensors: Rows, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out

    monkeypatch.setattr(cache_module, "save_file", die)
    with pytest.raises(ValueError, match=r"a process that recorded was killed.* set OMP_NUM_THREADS=1"):
        make(tmp_path, ForkingToy(), frames=650).build()
    monkeypatch.undo()
    cache = make(tmp_path, ForkingToy(), frames=650)
    cache.build()
    assert not cache.missing()


def test_what_a_recording_process_raises_is_not_taken_for_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    def fail(tensors: Rows, path: Path) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(cache_module, "save_file", fail)
    with pytest.raises(RuntimeError, match="something else"):
        make(tmp_path, ForkingToy(), frames=650).build()


def test_another_description_is_another_folder(tmp_path: Path) -> None:
    assert make(tmp_path, ToyRecorder(0)).folder != make(tmp_path, ToyRecorder(1)).folder


def test_more_frames_find_the_whole_shards_of_fewer(tmp_path: Path) -> None:
    make(tmp_path).build()
    for frames, made in ((520, [3, 4, 5]), (350, []), (400, [])):
        recorder = ToyRecorder()
        cache = make(tmp_path, recorder, frames)
        cache.build()
        assert recorder.made == made
        fresh = make(tmp_path / str(frames), frames=frames)
        fresh.build()
        assert equal(cache.open(), fresh.open())


def test_statistics_are_those_of_all_rows(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.build()
    opened = cache.open()
    acts = torch.cat([shard["activations/conv4a"] for shard in opened]).double()
    found = statistics(opened, "conv4a")
    assert torch.allclose(found.mean, acts.mean(0).float(), atol=1e-6)
    assert torch.allclose(found.std, (acts - acts.mean(0)).square().mean().sqrt().float(), atol=1e-6)
    blocks = [ToyRecorder().block(0, 100, lambda frames: None)]
    assert torch.allclose(statistics(blocks, "conv4a").mean, blocks[0]["activations/conv4a"].double().mean(0).float())


def test_an_interrupted_build_goes_on_from_whole_shards(tmp_path: Path) -> None:
    cache = make(tmp_path, ToyRecorder(interrupt_at=2))
    with pytest.raises(KeyboardInterrupt):
        cache.build()
    assert len(shards(cache)) == 2
    recorder = ToyRecorder()
    resumed = make(tmp_path, recorder)
    with pytest.raises(ValueError, match="missing"):
        resumed.open()
    resumed.build()
    assert recorder.made == [2, 3]
    whole = make(tmp_path / "whole")
    whole.build()
    assert equal(resumed.open(), whole.open())


def test_a_build_killed_while_writing_goes_on(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        save = cache_module.save_file

        def die_half_way(tensors: Rows, path: Path) -> None:
            save(tensors, path)
            if "00002" in path.name:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        cache_module.save_file = die_half_way
        make(tmp_path).build()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    recorder = ToyRecorder()
    cache = make(tmp_path, recorder)
    assert list(cache.folder.glob("*.partial"))
    cache.check()  # a half-written file under another name is no damage
    cache.build()
    assert recorder.made == [2, 3]
    assert not list(cache.folder.glob("*.partial"))
    assert len(cache.open()) == 4


def test_a_shard_that_no_manifest_vouches_for_is_made_anew(tmp_path: Path) -> None:
    cache = make(tmp_path, ToyRecorder(interrupt_at=1))
    with pytest.raises(KeyboardInterrupt):
        cache.build()
    (cache.folder / "shard-00001-100.safetensors").write_bytes(b"renamed, then killed before the manifest was written")
    recorder = ToyRecorder()
    make(tmp_path, recorder).build()
    assert recorder.made == [1, 2, 3]


@pytest.mark.parametrize("harm", ["truncated", "flipped"])
def test_a_damaged_shard_is_named_and_only_it_is_made_anew(tmp_path: Path, harm: str) -> None:
    cache = make(tmp_path)
    cache.build()
    path = shards(cache)[1]
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) - 7] if harm == "truncated" else data)
    recorder = ToyRecorder()
    for call in (make(tmp_path).check, make(tmp_path).open):
        with pytest.raises(ValueError, match=r"shard-00001-100\.safetensors .*Delete the file"):
            call()
    path.unlink()
    mended = make(tmp_path, recorder)
    mended.build()
    assert recorder.made == [1]
    mended.open()


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.build()
    (cache.folder / "manifest.json").write_text('{"shards": {"shard-0')
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*delete the folder"):
        make(tmp_path).check()


def test_a_cache_too_large_for_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**8))
    recorder = ToyRecorder()
    monkeypatch.setattr(recorder, "frame_bytes", lambda: 10**6)
    cache = make(tmp_path, recorder, frames=8_000)
    message = r"8\.00 GB for 8000 training frames.*has 0\.10 GB free: lower num_frames, val"
    with pytest.raises(ValueError, match=message + ".*cache_dir.*data that take a source can be streamed"):
        refuse_if_too_large([cache])
    with pytest.raises(ValueError, match="GB free"):
        cache.build()
    assert recorder.made == []


def test_a_disk_that_fills_up_stops_with_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Rows, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = make(tmp_path)
    monkeypatch.setattr(cache_module, "save_file", full)
    with pytest.raises(ValueError, match=r"could not be written .*No space left.*cache_dir"):
        cache.build()
    assert not list(cache.folder.glob("*.partial"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="set cache_dir"):
        make(tmp_path / "file").build()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    cache = make(tmp_path)
    (cache.folder / "lock").mkdir(parents=True)  # root may write anywhere else
    with pytest.raises(ValueError, match=r"cannot write \S+/lock .*set cache_dir"):
        cache.build()


def test_shards_may_be_read_by_whom_other_files_may(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.build()
    assert {path.stat().st_mode for path in shards(cache)} == {(cache.folder / "manifest.json").stat().st_mode}


def test_a_frame_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, answers = ToyRecorder(), iter([10])
    monkeypatch.setattr(recorder, "frame_bytes", lambda: next(answers))  # asked again, it raises
    cache = make(tmp_path, recorder)
    refuse_if_too_large([cache])
    cache.build()
    assert not list(answers)


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    recorder = ToyRecorder()
    cache = make(tmp_path, recorder)
    cache.folder.mkdir(parents=True)
    builder = threading.Thread(target=cache.build)
    with cache_module._locked(cache.folder / "lock"):
        builder.start()
        time.sleep(0.2)
        assert recorder.made == []
    builder.join()
    assert recorder.made == [0, 1, 2, 3]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_open_shards_take_no_memory_of_their_own(tmp_path: Path) -> None:
    class Large(ToyRecorder):
        frames_per_block = 10_000

        def block(self, index: int, frames: int, progress: Callable[[int], object]) -> Rows:
            return {
                "activations/conv4a": torch.zeros(frames * 64, 32, dtype=torch.bfloat16),
                "levels": torch.zeros(frames * 64, dtype=torch.int32),
            }

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    cache = make(tmp_path, Large(), frames=20_000)
    cache.build()
    before = anonymous()
    opened = cache.open()
    assert sum(float(shard["activations/conv4a"].sum()) for shard in opened) == 0
    assert anonymous() - before < 30_000  # kB, of 82 MB mapped and read
