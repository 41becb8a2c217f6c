"""Each variant of a metric against the library, or the arithmetic, that its protocol used: to 1e-5."""

import numpy as np
import pytest
import torch
from conftest import vgg_weights
from scipy.signal import convolve2d

from kaleido_diffusers import load_scene, sample_capture
from kaleido_diffusers.captures.images import as_image_tensor
from kaleido_diffusers.evaluation.metrics import LPIPS, psnr, quantized, ssim_variant


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Noise, and two neighbouring photos."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, 40, 53, generator=generator)
    scene = load_scene(sample_capture())
    photos = [as_image_tensor(scene.images[index])[None] for index in (0, 1)]
    return [(noise[:1], (noise[:1] + 0.2 * noise[1:]).clamp(0, 1)), (photos[0], photos[1])]


def by_torchmetrics(x, y):
    """As torchmetrics was when the protocols took it: newer versions average over the reflected border too."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    options = {"data_range": 1.0, "return_full_image": True}
    _, values = structural_similarity_index_measure(x.double(), y.double(), **options)
    return float(values[..., 5:-5, 5:-5].mean())


def by_skimage(x, y, **options):
    from skimage.metrics import structural_similarity

    x, y = (image[0].permute(1, 2, 0).numpy() for image in (x, y))
    return structural_similarity(x, y, channel_axis=-1, **options)


def by_arithmetic(x, y, mode: str, clip: bool):
    """3DGS and MultiNeRF: the formula of the papers, a channel at a time, one 2D window."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for a, b in zip(x[0].double().numpy(), y[0].double().numpy()):
        mean_a, mean_b, aa, bb, ab = (convolve2d(v, window, mode) for v in (a, b, a * a, b * b, a * b))
        aa, bb, ab = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
        if clip:
            aa, bb = np.maximum(aa, 0), np.maximum(bb, 0)
            ab = np.sign(ab) * np.minimum(np.sqrt(aa * bb), np.abs(ab))
        top = (2 * mean_a * mean_b + 1e-4) * (2 * ab + 9e-4)
        values.append(top / ((mean_a**2 + mean_b**2 + 1e-4) * (aa + bb + 9e-4)))
    return np.mean(values)


ORIGINS = {
    "a": by_torchmetrics,
    "b": lambda x, y: by_skimage(x.double(), y.double(), win_size=11, gaussian_weights=True, data_range=1.0),
    "c": lambda x, y: by_skimage(x.double(), y.double(), data_range=1.0),
    "d": lambda x, y: by_arithmetic(x, y, "same", False),
    "e": lambda x, y: by_arithmetic(x, y, "valid", True),
    "f": lambda x, y: by_skimage(x.double(), y.double(), data_range=2.0),
}


@pytest.mark.parametrize("key", ORIGINS)
def test_ssim_agrees_with_its_origin(key):
    for x, y in pairs():
        assert ssim_variant(x, y, key).item() == pytest.approx(ORIGINS[key](x, y), abs=1e-5)


def test_the_variants_differ_and_name_their_limits():
    x, y = pairs()[1]
    values = {key: round(ssim_variant(x, y, key).item(), 6) for key in ORIGINS}
    assert len({values[key] for key in "abcdf"}) == 5 and values["f"] > values["c"]
    with pytest.raises(ValueError, match="one of a, b"):
        ssim_variant(x, y, "g")
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim_variant(x[..., :8, :8], y[..., :8, :8], "a")


def test_eight_bits_are_those_of_the_file():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    x, y = (quantized(image) for image in pairs()[0])
    as_bytes = [(image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy() for image in (x, y)]
    assert psnr(x, y).item() == pytest.approx(peak_signal_noise_ratio(*as_bytes), abs=1e-5)
    assert ssim_variant(x, y, "c").item() == pytest.approx(structural_similarity(*as_bytes, channel_axis=-1), abs=1e-5)
    values = torch.tensor([0.0, 0.999, 1.2])
    assert quantized(values).mul(255).tolist() == [0, 255, 255]
    assert quantized(values, truncate=True).mul(255).tolist() == [0, 254, 255]


def test_lpips_with_vgg_takes_the_features_that_the_paper_takes(tmp_path):
    """Against the network written out as torchvision lists it: 13 convolutions with pooling after 2, 4, 7 and 10."""
    weights = vgg_weights(tmp_path / "vgg.pth")
    lpips, state = LPIPS(weights, "vgg"), torch.load(weights, weights_only=True)
    x, y = pairs()[0]
    heads = [head.flatten() for head in lpips.heads]
    assert [len(head) for head in heads] == [64, 128, 256, 512, 512] and all((head >= 0).all() for head in heads)

    def features(image):
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        image, taken = (image - mean.view(3, 1, 1)) / std.view(3, 1, 1), []
        for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            image = torch.nn.functional.max_pool2d(image, 2) if taken else image
            for index in block:
                weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
                image = torch.relu(torch.nn.functional.conv2d(image, weight, bias, padding=1))
            taken.append(torch.nn.functional.normalize(image, dim=1))
        return taken

    distances = [
        ((a - b) ** 2 * head.view(1, -1, 1, 1)).sum(1).mean() for a, b, head in zip(features(x), features(y), heads)
    ]
    # The paper's constants on [-1, 1] are those of ImageNet rounded to three digits.
    assert lpips(x, y).item() == pytest.approx(float(sum(distances)), rel=2e-3)


def test_lpips_never_changes_its_net(tmp_path):
    weights = vgg_weights(tmp_path / "vgg.pth")
    assert LPIPS(weights).net == "vgg"
    with pytest.raises(ValueError, match="holds LPIPS with 'vgg', 'alex' is needed"):
        LPIPS(weights, "alex")
    torch.save({"other": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="neither AlexNet's nor VGG-16's"):
        LPIPS(weights)
