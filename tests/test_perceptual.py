"""The perceptual loss: what it compares, and what a step makes of it."""

import pytest
import torch
from conftest import vgg_weights
from safetensors.torch import save_file
from test_trainer import make_config
from test_training import Spy, make_batch

from kaleido_diffusers import RectifiedFlowViewScheduler
from kaleido_diffusers.evaluation.metrics import LPIPS
from kaleido_diffusers.models.autoencoder_taef2 import AutoencoderTAEF2
from kaleido_diffusers.models.latents import decode_images
from kaleido_diffusers.training.config import PerceptualOptions
from kaleido_diffusers.training.loop import Trainer
from kaleido_diffusers.training.objective import Denoised, ViewPartition, denoise_targets
from kaleido_diffusers.training.perceptual import PerceptualLoss


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return vgg_weights(tmp_path_factory.mktemp("vgg") / "vgg.pth")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made_views(*shape: int) -> Denoised:
    views, truth = torch.rand(2, *shape, generator=generator()) * 2 - 1
    return Denoised(views.requires_grad_(), truth, views - truth)


def test_of_whole_views_it_is_their_mean_distance(weights):
    denoised = made_views(2, 3, 3, 32, 32)
    loss = PerceptualLoss(PerceptualOptions(weights, share=1.0, crop=64), None)(denoised, generator())
    pictures = [(views.flatten(0, 1) + 1) / 2 for views in (denoised.views, denoised.truth)]
    assert loss.item() == pytest.approx(LPIPS(weights, "vgg")(*pictures).mean().item(), rel=1e-4)
    same = Denoised(denoised.truth, denoised.truth, torch.zeros(()))
    assert PerceptualLoss(PerceptualOptions(weights), None)(same, generator()) < 1e-9


def test_a_share_of_the_views_is_compared_in_parts(weights):
    denoised = made_views(2, 5, 3, 48, 40)
    PerceptualLoss(PerceptualOptions(weights, share=0.2, crop=16), None)(denoised, generator(3)).backward()
    touched = denoised.views.grad.abs().sum(2) > 0
    areas = touched.sum((-2, -1))[touched.any(-1).any(-1)]
    assert len(areas) == 2, "a fifth of ten"
    for number in touched.any(-1).any(-1).nonzero().tolist():
        rows, columns = touched[tuple(number)].nonzero().amax(0) - touched[tuple(number)].nonzero().amin(0) + 1
        assert rows <= 16 and columns <= 16
    places = set()
    for seed in range(12):
        denoised.views.grad = None
        PerceptualLoss(PerceptualOptions(weights, share=0.1, crop=16), None)(denoised, generator(seed)).backward()
        places.add(tuple((denoised.views.grad.abs().sum(2) > 0).nonzero()[0].tolist()))
    assert len({place[:2] for place in places}) > 4 and len({place[2:] for place in places}) > 8


def test_latents_are_decoded_for_it(weights):
    torch.manual_seed(0)
    vae = AutoencoderTAEF2().requires_grad_(False).eval()
    channels = vae.config.latent_channels
    denoised = made_views(1, 2, channels, 4, 4)
    loss = PerceptualLoss(PerceptualOptions(weights, share=1.0, crop=64), vae)(denoised, generator())
    pictures = [decode_images(vae, views[0]) / 2 + 0.5 for views in (denoised.views, denoised.truth)]
    assert loss.item() == pytest.approx(LPIPS(weights, "vgg")(*pictures).mean().item(), rel=1e-4)
    loss.backward()
    assert denoised.views.grad.abs().sum() > 0
    denoised.views.grad = None
    PerceptualLoss(PerceptualOptions(weights, share=0.5, crop=20), vae)(denoised, generator()).backward()
    assert (denoised.views.grad.abs().sum(2) > 0).sum() == 9, "20 pixels want three cells of 8 along each side"


@pytest.mark.parametrize("prediction_type", ["sample", "velocity"])
def test_a_step_adds_it_to_the_error_of_the_velocity(prediction_type, weights, tmp_path):
    options = PerceptualOptions(weights, scale=0.7, share=0.3, crop=16)
    config = make_config(tmp_path, size=16, perceptual=options, prediction_type=prediction_type)
    trainer = Trainer(config)
    item = next(trainer._batches())
    noise = item.noise(config.seed)
    total = trainer.loss(item.batch, item.partition, noise)
    denoised = denoise_targets(trainer.model, trainer.scheduler, item.batch, item.partition, item.noise(config.seed))
    rows = item.noise(config.seed)
    denoise_targets(trainer.model, trainer.scheduler, item.batch, item.partition, rows)  # the noise comes first
    distance = PerceptualLoss(options, None)(denoised, rows[0])
    assert distance > 0
    assert total.item() == pytest.approx(denoised.loss.item() + 0.7 * distance.item(), rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["sample", "velocity"])
def test_the_views_of_an_answer(prediction_type):
    """A model that knows the noise gives the clean views back, whatever it predicts."""
    batch, partition = make_batch(), ViewPartition(((0,),), ((1,), (2,)))

    def answer(x, t, kwargs):
        clean, sigma = batch.pixels[:, 1:3], (t[:, 1:] / 1000)[..., None, None, None]
        return clean if prediction_type == "sample" else (x[:, 1:] - clean) / sigma

    scheduler = RectifiedFlowViewScheduler(prediction_type=prediction_type)
    denoised = denoise_targets(Spy(answer), scheduler, batch, partition, generator())
    torch.testing.assert_close(denoised.views, batch.pixels[:, 1:3], rtol=1e-3, atol=1e-4)
    assert torch.equal(denoised.truth, batch.pixels[:, 1:3]) and denoised.loss < 1e-6


def test_options_are_checked_and_safetensors_are_read(weights, tmp_path):
    for wrong in ({"scale": -1.0}, {"share": 0.0}, {"share": 1.5}, {"crop": 8}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` of the perceptual loss"):
            PerceptualOptions(weights, **wrong)
    with pytest.raises(ValueError, match="`size` must be 16 or more for the perceptual loss, got 8"):
        make_config(tmp_path, size=8, perceptual=PerceptualOptions(weights))
    with pytest.raises(ValueError, match="needs the `weights`"):
        PerceptualLoss(PerceptualOptions(), None)
    save_file(torch.load(weights, weights_only=True), tmp_path / "vgg.safetensors")
    x, y = torch.rand(2, 1, 3, 16, 16, generator=generator())
    assert torch.equal(LPIPS(tmp_path / "vgg.safetensors")(x, y), LPIPS(weights)(x, y))
