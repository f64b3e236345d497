import torch

from interpretability import AblateDirection, AddDirection, ProjectDirection
from networks import CustomCNN, Direction


def direction(*shape: int) -> Direction:
    vector = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return Direction(vector / vector.norm(), mean=0.7, std=2.5)


def test_components_after_each_edit() -> None:
    acts = torch.randn(5, 4, 3, 3)
    along = direction(4, 3, 3)

    def component(edited: torch.Tensor) -> torch.Tensor:
        return (edited * along.vector).sum((1, 2, 3))

    before = component(acts)
    torch.testing.assert_close(component(AddDirection(along, 2.0)(acts)), before + 5.0)
    torch.testing.assert_close(component(AblateDirection(along)(acts)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(component(ProjectDirection(along, -1.0)(acts)), torch.full((5,), 0.7 - 2.5))
    for edit in (AddDirection(along, 2.0), AblateDirection(along), ProjectDirection(along)):
        change = edit(acts) - acts
        rest = change - component(change)[:, None, None, None] * along.vector
        torch.testing.assert_close(rest, torch.zeros_like(rest), atol=1e-5, rtol=0)


def test_a_direction_of_channels_is_edited_at_each_position_or_at_those_of_the_mask() -> None:
    acts, along = torch.randn(2, 4, 3, 3), direction(4)
    edited = ProjectDirection(along, 1.0)(acts)
    components = torch.einsum("bchw,c->bhw", edited, along.vector)
    torch.testing.assert_close(components, torch.full((2, 3, 3), 3.2))
    mask = torch.zeros(3, 3)
    mask[1, 2] = 1
    part = AddDirection(along, 1.0, mask)(acts)
    assert torch.equal(part[..., 0, :], acts[..., 0, :])
    torch.testing.assert_close(part[..., 1, 2], acts[..., 1, 2] + 2.5 * along.vector)


def test_put_in_at_a_tap_in_the_activation_s_own_type() -> None:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    frames = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    for tap, shape in (("conv4a", (32, 8, 8)), ("fc1", (256,))):
        along = direction(*shape)
        edit = ProjectDirection(along, 0.0)
        with torch.autocast("cpu", torch.bfloat16):
            recorded = agent(frames, record=[tap], edits=[(tap, edit)]).activations[tap]
        assert recorded.dtype == torch.bfloat16
        components = (recorded.float() * along.vector).flatten(1).sum(1)
        torch.testing.assert_close(components, torch.full((3,), 0.7), atol=0.06, rtol=0)
