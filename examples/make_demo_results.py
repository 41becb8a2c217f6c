"""Generates the views that `kaleido demo` shows at once: a flight through each capture that ships. To be run again
whenever the bundled checkpoint changes."""

import threading

from kaleido_diffusers import KaleidoViewSynthesisPipeline, bundled_checkpoint
from kaleido_diffusers.demo.captures import SAMPLES, load_sample
from kaleido_diffusers.demo.examples import example_wish, write_example
from kaleido_diffusers.demo.limits import Limits
from kaleido_diffusers.demo.views import generate, plan_views


def main() -> None:
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(bundled_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    for name in SAMPLES:
        capture = load_sample(name, pipe.default_sample_size)
        wish = example_wish(capture, Limits())
        plan = plan_views(capture, wish, Limits())
        *_, last = generate(pipe, capture, plan, wish, threading.Event())
        print(f"wrote {write_example(name, last.news.views)}: {wish.path}, {len(plan.targets)} views")


if __name__ == "__main__":
    main()
