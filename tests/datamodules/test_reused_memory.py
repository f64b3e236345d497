import torch

from datamodules.reused_memory import ReusedMemory


def test_memory_comes_back_with_the_last_view_of_it() -> None:
    memory = ReusedMemory((6, 2), torch.bfloat16)
    first = memory.borrow()
    assert (first.shape, first.dtype) == ((6, 2), torch.bfloat16)
    place, part = first.data_ptr(), first[2:].unbind()[1]
    second = memory.borrow()
    assert second.data_ptr() != place
    del first
    assert memory.borrow().data_ptr() not in (place, second.data_ptr()), "a part of it is still looked at"
    part.fill_(3)
    del part
    borrowed = [memory.borrow() for _ in range(2)]
    assert place in [tensor.data_ptr() for tensor in borrowed]
    assert len({tensor.data_ptr() for tensor in borrowed}) == 2


def test_it_outlives_whoever_lent_it() -> None:
    tensor = ReusedMemory((3,), torch.float32).borrow()
    tensor[:] = torch.arange(3.0)
    assert tensor.tolist() == [0, 1, 2]
