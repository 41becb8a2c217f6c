"""Converts a checkpoint, as `kaleido convert`: `python conversion/convert_checkpoint.py SOURCE --output FOLDER`.

Names, shapes and configs are matched in `kaleido_diffusers/loaders/single_file.py`.
"""

import sys

from kaleido_diffusers.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
