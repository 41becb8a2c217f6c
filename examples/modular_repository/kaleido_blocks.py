"""The blocks of this repository are in the package kaleido-diffusers; here is only their name."""

try:
    from kaleido_diffusers import KaleidoBlocks  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "kaleido_diffusers":
        raise
    raise ImportError("This pipeline is in a package that is absent: `pip install kaleido-diffusers`.") from None
