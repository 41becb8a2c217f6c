import multiprocessing
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

from kaleido_diffusers import (  # noqa: E402
    Cameras,
    KaleidoTransformer3DModel,
    KaleidoViewSynthesisPipeline,
    RectifiedFlowViewScheduler,
    cli,
)


SHARED = Path(__file__).parents[2] / "shared" / "data"


DEAREST = ("demo_browser", "trainer", "hub", "kept", "reconstruction", "viewer", "demo", "registration")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The dearest files come first, so that no process is left with one of them when the others have ended."""
    place = {f"test_{name}": number for number, name in enumerate(DEAREST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marks of diffusers' testers known, see test_diffusers_testers.py."""
    if source := os.environ.get("DIFFUSERS_SOURCE"):
        text = (Path(source) / "tests" / "testing_utils.py").read_text(encoding="utf-8")
        for name in {*re.findall(r"pytest\.mark\.(\w+)", text)} - {"skip", "skipif", "xfail", "parametrize", "slow"}:
            config.addinivalue_line("markers", f"{name}: of diffusers' testers")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In continuous integration a page that was tried in no browser is not tested."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None:
        return
    left_out = [report.nodeid for report in reporter.stats.get("skipped", ()) if "_browser" in str(report.nodeid)]
    if left_out:
        reporter.write_line(f"CI: tests in a browser were left out: {', '.join(left_out)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


TINY = {
    "patch_size": 4,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_head_dim": 32,
    "rope_axes_dim": (6, 6, 4),
    "ffn_dim": 48,
    "sample_size": 8,
}


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random: gates that start at zero would pass any test."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            scale = 0.3 if parameter.ndim < 2 or "table" in name else parameter.shape[-1] ** -0.5
            parameter.copy_(values * scale + ("norm" in name and name.endswith("weight")))
    return model


def make_model(dtype: torch.dtype = torch.float32, seed: int = 0, **config) -> KaleidoTransformer3DModel:
    return randomize(KaleidoTransformer3DModel(**{**TINY, **config}), seed).to(dtype).eval()


def make_pipeline(prediction_type: str = "sample", vae=None, **config) -> KaleidoViewSynthesisPipeline:
    pipe = KaleidoViewSynthesisPipeline(
        make_model(**config), RectifiedFlowViewScheduler(prediction_type=prediction_type), vae
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_poses(*shape: int, generator: torch.Generator, spread: float = 1.0) -> torch.Tensor:
    """Rigid matrices `[*shape, 4, 4]` in float64."""
    q, r = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=torch.float64))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    q = q * torch.linalg.det(q)[..., None, None]
    poses = torch.eye(4, dtype=torch.float64).repeat(*shape, 1, 1)
    poses[..., :3, :3] = q
    poses[..., :3, 3] = spread * torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    return poses


def make_cameras(*shape: int, seed: int = 0, height: int = 48, width: int = 64) -> Cameras:
    generator = torch.Generator().manual_seed(seed)
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(*shape, 1, 1)
    values = torch.rand(*shape, 5, generator=generator, dtype=torch.float64)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = 60 + 30 * values[..., 0], 60 + 30 * values[..., 1]
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = 25 + 10 * values[..., 2], 20 + 10 * values[..., 3]
    intrinsics[..., 0, 1] = values[..., 4]
    return Cameras(random_poses(*shape, generator=generator), intrinsics, torch.tensor([height, width]))


def random_lenses(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Normalised intrinsics `[*shape, 3, 3]` in float64, principal points off centre."""
    lenses = torch.eye(3, dtype=torch.float64).repeat(*shape, 1, 1)
    values = torch.rand(*shape, 4, generator=generator, dtype=torch.float64)
    lenses[..., 0, 0], lenses[..., 1, 1] = 0.8 + values[..., 0], 0.8 + values[..., 1]
    lenses[..., 0, 2], lenses[..., 1, 2] = 0.4 + 0.2 * values[..., 2], 0.4 + 0.2 * values[..., 3]
    return lenses


class Views:
    """Random arguments of the transformer for `num_views` views, in float64."""

    def __init__(self, num_views: int, batch: int = 2, size: int = 8, seed: int = 0, channels: int = 3):
        generator = torch.Generator().manual_seed(seed)
        self.hidden_states = torch.randn(
            batch, num_views, channels, size, size, generator=generator, dtype=torch.float64
        )
        self.timestep = 1000 * torch.rand(batch, num_views, generator=generator, dtype=torch.float64)
        self.poses = random_poses(batch, num_views, generator=generator)
        self.intrinsics = random_lenses(batch, num_views, generator=generator)
        self.times = torch.rand(batch, num_views, generator=generator, dtype=torch.float64)

    def clean(self, num_references: int) -> "Views":
        self.timestep[:, :num_references] = 0
        return self

    def kwargs(self, index=slice(None), **replaced) -> dict[str, torch.Tensor]:
        values = {**vars(self), **replaced}
        return {name: None if value is None else value[:, index] for name, value in values.items()}


@pytest.fixture
def fox() -> Path:
    return shared("captures/fox")


def shared(path: str) -> Path:
    """Shared test data, or a skip that says what is absent."""
    if not (SHARED / path).exists():
        pytest.skip(f"shared data {path} is absent")
    return SHARED / path


def blobs(cameras: Cameras, points: torch.Tensor, radius: float = 3.0) -> torch.Tensor:
    """Images `[V, 3, H, W]` of soft white dots at world points `[P, 3]`, drawn where the cameras project them."""
    height, width = cameras.image_sizes[0].tolist()
    pixels, _ = cameras.project(points.expand(len(cameras), -1, 3))
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([x, y], dim=-1)
    square = (grid[None, :, :, None] - pixels[:, None, None]).square().sum(-1)
    return torch.exp(-square / (2 * radius**2)).amax(-1)[:, None].expand(-1, 3, -1, -1).float()


def found(image: torch.Tensor, near: torch.Tensor, reach: float) -> torch.Tensor:
    """Centre of light around a pixel."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    weight = image[0] * ((x - near[0]).square() + (y - near[1]).square() < reach**2)
    return torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun() -> list[str]:
    """The front of a command line that runs a module or a script in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*launch, "--master-port", str(free_port())]


# Processes of tests are forked from one that has imported everything already, which takes a new interpreter seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [f"kaleido_diffusers.cli.{verb}" for verb in ("evaluate", "info", "lora", "poses", "render", "shard", "train")]
    + ["test_parallel", "test_sharding", "test_trainer"]
)


def places(size: int) -> list[dict[str, str]]:
    """What each process of a group finds in its environment, as from torchrun."""
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{"RANK": str(number), "LOCAL_RANK": str(number), **group} for number in range(size)]


def _run_command(
    words: Sequence[str], cwd: Path | None, env: dict[str, str], said: Connection, all_said: bool
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
    torch.set_num_threads(1)
    out = said.fileno() if all_said else os.open(os.devnull, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(said.fileno(), 2)
    os.chdir(cwd or ".")
    os.environ.update(env)
    sys.argv = ["kaleido", *words]
    sys.exit(cli.main())


class Command:
    """`kaleido WORDS` in a process of its own, which tests can kill and interrupt.

    Its `output` is what it says on standard error, or with `all_said` there and on standard output.
    """

    def __init__(
        self, *words: str, cwd: Path | None = None, env: dict[str, str] | None = None, all_said: bool = False
    ):
        reads, writes = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(target=_run_command, args=(words, cwd, env or {}, writes, all_said))
        self._process.start()
        writes.close()
        self.output = open(os.dup(reads.fileno()), "rb", buffering=0)
        reads.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self._process.join()

    def rest(self, timeout: float = 120) -> str:
        """What it has still said, when it has ended."""
        said = b""
        while wait([self.output], timeout) and (block := self.output.read(65536)):
            said += block
        self._process.join(timeout)
        assert self.returncode is not None, f"goes on after {timeout} seconds: {said.decode()}"
        return said.decode()


@contextmanager
def started(*words: str, **options) -> Iterator[Command]:
    """A [`Command`], which is ended in any case."""
    command = Command(*words, **options)
    try:
        yield command
    finally:
        command.kill()
        command.output.close()


def ended(*commands: AbstractContextManager[Command]) -> list[str]:
    """What commands that work side by side have said; all must end well."""
    with ExitStack() as stack:
        running = [stack.enter_context(command) for command in commands]
        said = [command.rest() for command in running]
        assert [command.returncode for command in running] == [0] * len(running), "".join(said)[-3000:]
    return said


@contextmanager
def served_command(
    arguments: Sequence[str], announced: str, cwd: Path | None = None
) -> Iterator[tuple[str, list[str]]]:
    """The address of a page that a command of `kaleido` serves, the group of `announced` in what it prints, and all
    that it says. Ends it as Ctrl-C would, and checks that it ends well."""
    with started(*arguments, cwd=cwd, all_said=True) as command:
        said = []
        for line in iter(command.output.readline, b""):
            said.append(line.decode())
            if found := re.search(announced, said[-1]):
                yield found.group(1), said
                break
        else:
            raise AssertionError("".join(said))
        command.send_signal(signal.SIGINT)
        said.append(command.rest(60))
        assert command.returncode == 0 and "Traceback" not in said[-1], "".join(said)


def vgg_weights(path: Path) -> Path:
    """A VGG-16 of torchvision's names, random and small in scale: no heads, as torchvision's own file has none."""
    from kaleido_diffusers.evaluation.metrics import LPIPS

    generator, state, before = torch.Generator().manual_seed(1), {}, 3
    for index, channels in zip(LPIPS._VGG_INDICES, LPIPS._VGG_CHANNELS[1:]):
        state[f"features.{index}.weight"] = torch.randn(channels, before, 3, 3, generator=generator) / before**0.5 / 3
        state[f"features.{index}.bias"] = torch.zeros(channels)
        before = channels
    torch.save(state, path)
    return path
