"""The configurations of examples/training: each is understood, and fits the cards that it is for."""

import subprocess
from pathlib import Path

import pytest
import tyro
from diffusers import AutoencoderKL

from kaleido_diffusers import cli
from kaleido_diffusers.cli import main
from kaleido_diffusers.cli.config_files import with_config_files
from kaleido_diffusers.training.hardware import CARDS
from kaleido_diffusers.training.plan import make_plan


FOLDER = Path(__file__).parents[1] / "examples" / "training"
STAGES = sorted(FOLDER.glob("stage-*.yaml"))


def settings(*configs: Path, more: tuple[str, ...] = ()):
    words = with_config_files(["train", "--output", "runs/x", "--config", *map(str, configs), *more])
    return tyro.extras.subcommand_cli_from_dict(cli.VERBS, args=words)


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("vae")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(latent_channels=16, block_out_channels=(32,) * 4, **blocks).save_config(folder)
    return str(folder)


@pytest.mark.parametrize(
    "name, cards, card, parameters",
    [
        ("small", 1, "rtx4090", 1e8),
        ("large", 8, "h100", 1.3e9),
        ("xl-64", 64, "h100", 3.1e9),
        ("xl-512", 512, "h100", 3.1e9),
    ],
)
def test_it_fits(name, cards, card, parameters, vae):
    config = settings(FOLDER / f"{name}.yaml", more=("--vae", vae))
    plan = make_plan(config, CARDS[card], cards)
    assert plan.parameters == pytest.approx(parameters, rel=0.05)
    assert sum(plan.memory.values()) < 0.8 * plan.card.memory, plan.text
    assert plan.cards == cards and plan.shards == min(cards, 8)
    if name.startswith("xl"):  # 1024 pixels and long rollouts too
        for stage in STAGES:
            staged = settings(FOLDER / f"{name}.yaml", stage, more=("--vae", vae))
            assert "TOO MUCH" not in make_plan(staged, CARDS[card], cards).text, stage


def test_later_files_count_more_and_the_command_line_most():
    config = settings(FOLDER / "xl-64.yaml", FOLDER / "stage-5-rollouts.yaml", more=("--views", "22"))
    assert (config.model.preset, config.size, config.views, config.steps) == ("xl", 512, 22, 10_000)
    assert config.gradient_checkpointing and config.references == (1, 2, 4, 8, 12, 16, 20)
    assert [path.name[:7] for path in STAGES] == [f"stage-{number}" for number in range(1, 6)]


def test_files_that_are_no_settings(tmp_path, capsys):
    for text, said in (("a: [", "is not YAML"), ("- 3", "must hold settings")):
        (tmp_path / "x.yaml").write_text(text)
        assert main(["train", "--output", "x", "--config", str(tmp_path / "x.yaml")]) == 1
        assert said in capsys.readouterr().err
    assert main(["train", "--output", "x", "--config", "nowhere.yaml"]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("script, shell", [("torchrun.sh", "sh"), ("slurm.sbatch", "bash")])
def test_launch_files_start_the_command(script, shell, tmp_path):
    """With stand-ins for SLURM and torchrun that say what they were asked for."""
    for name in ("torchrun", "srun", "scontrol"):
        (tmp_path / name).write_text('#!/bin/sh\n[ "${0##*/}" = scontrol ] && echo node1 && exit\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_NNODES": "8", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "x"}
    words = [
        shell,
        str(FOLDER / script),
        "runs/a",
        "s3://b/c",
        "xl-64.yaml",
        "stage-1-video.yaml",
        "--",
        "--seed",
        "1",
    ]
    said = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    assert "-m kaleido_diffusers.cli train --config xl-64.yaml stage-1-video.yaml --output runs/a" in said
    assert said.strip().endswith("--data s3://b/c --seed 1")
    if shell == "bash":
        assert "--nnodes 8 --nproc-per-node 8" in said and "--rdzv-endpoint node1:29500" in said
