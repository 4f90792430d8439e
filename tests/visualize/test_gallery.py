import numpy as np
import pytest
import torch

from lightconv.visualize import gallery


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_captions(channels):
    images = 1.5 * torch.rand(2, 4, channels, 5, 7, generator=torch.Generator().manual_seed(0)) - 0.25
    figure = gallery(images, [["cat", "cat", "60% dog\n40% cat", "cat"], ["dog"] * 4], "a recipe")
    assert figure.get_suptitle() == "a recipe"
    for panel, image in zip(figure.axes, images.flatten(0, 1), strict=True):
        shown = panel.images[0].get_array()
        np.testing.assert_allclose(shown.reshape(5, 7, channels), image.clamp(0, 1).permute(1, 2, 0))
        assert panel.images[0].get_clim() == (0, 1)
    captions = [panel.get_xlabel() for panel in figure.axes]
    assert captions == ["cat", "", "60% dog\n40% cat", "", "dog", "", "", ""]
    assert [panel.get_title() for panel in figure.axes] == ["original"] + [""] * 7
