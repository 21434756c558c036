"""Convolutions by oneDNN: the same numbers as torch's own, and only where nothing else could be meant."""

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from svgd_label.svgd import Committee
from svgd_label.svgd.convolution import FastConvolutions

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch comes without oneDNN")


def kernels(layer: nn.Module, x: Tensor) -> set[str]:
    """What torch runs for a layer inside the context."""
    with profile(activities=[ProfilerActivity.CPU]) as found, FastConvolutions():
        layer(x)
    return {event.key for event in found.key_averages()}


@needs_onednn
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), ((2, 1, 1), 1), (1, "same")])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_one_volume_is_convolved_as_torch_does_it(
    stride: int | tuple[int, int, int], padding: int | str, groups: int, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 6, 3, stride=stride, padding=padding, groups=groups, bias=bias)
    x = torch.rand(1, 4, 9, 8, 7).to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        expected = layer.double()(x.double()).float()
        with FastConvolutions():
            found = layer.float()(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@needs_onednn
@pytest.mark.parametrize(("stride", "padding", "output_padding"), [(2, 1, 1), ((2, 1, 2), 1, (1, 0, 1)), (1, 0, 0)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [4, 16])
def test_one_volume_is_convolved_the_other_way_as_torch_does_it(
    stride: int | tuple[int, int, int],
    padding: int,
    output_padding: int | tuple[int, int, int],
    groups: int,
    bias: bool,
    channels: int,
) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose3d(4, channels, 3, stride, padding, output_padding, groups=groups, bias=bias)
    x = torch.rand(1, 4, 5, 4, 6).to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        expected = layer.double()(x.double()).float()
        assert ("aten::slow_conv_transpose3d" in kernels(layer.float(), x)) == (channels == 4 and groups == 1)
        with FastConvolutions():
            found = layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@needs_onednn
def test_a_volume_for_which_torch_takes_onednn_goes_the_faster_way_too() -> None:
    layer = nn.ConvTranspose3d(32, 3, 3, 2, 1, 1)
    x = torch.rand(1, 32, 24, 28, 20).to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        assert "aten::slow_conv_transpose3d" in kernels(layer, x)
        expected = layer.double()(x.double()).float()
        with FastConvolutions():
            torch.testing.assert_close(layer.float()(x), expected, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_it_is_onednn_that_runs_and_only_without_gradients_for_one_volume_in_float32() -> None:
    layer, x = nn.Conv3d(4, 4, 3), torch.rand(1, 4, 6, 6, 6)
    with torch.inference_mode():
        assert "aten::mkldnn_convolution" in kernels(layer, x)
        assert "aten::slow_conv3d" in kernels(layer.double(), x.double())
    layer = layer.float()
    assert "aten::slow_conv3d" in kernels(layer, x)
    with FastConvolutions():
        layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_a_committee_gives_what_its_particles_give() -> None:
    committee = Committee.build(
        lambda: nn.Sequential(nn.Conv3d(1, 8, 3, 2, 1), nn.InstanceNorm3d(8), nn.PReLU(), nn.Conv3d(8, 3, 1)),
        size=3,
        seed=0,
    ).eval()
    x = torch.rand(1, 1, 12, 12, 12)
    with torch.inference_mode():
        each = torch.stack([particle(x).softmax(dim=1) for particle in committee.particles])
        torch.testing.assert_close(torch.stack(list(committee.probabilities(x))), each)
        torch.testing.assert_close(committee(x), each.mean(dim=0))


def test_one_number_for_all_axes_is_left_to_torch() -> None:
    x, weight = torch.rand(1, 4, 3, 3, 3), torch.rand(4, 16, 3, 3, 3)
    with torch.inference_mode():
        expected = torch.conv_transpose3d(x, weight, None, 2, 1, 1, 1, 1)
        with FastConvolutions():
            torch.testing.assert_close(torch.conv_transpose3d(x, weight, None, 2, 1, 1, 1, 1), expected)
