"""The Space: serves the package's app where Hugging Face looks for it."""

import os

from kaleido_diffusers.cli.demo import Demo


if __name__ == "__main__":
    host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0")
    Demo(host=host, port=int(os.environ.get("GRADIO_SERVER_PORT", "7860"))).run()
