"""What tells one set of loaded adapters from another, so that what was encoded with one is not used with another."""

from typing import NamedTuple


__all__ = ["AdapterState"]


class AdapterState(NamedTuple):
    """The adapters of a transformer that take part in a forward pass. Layers without any are left out."""

    layers: tuple[tuple[str, tuple[tuple[str, float | str], ...]], ...]  # layer -> adapters, scaling or "fused"
    sources: tuple  # adapter -> what tells its weights apart
    fused_for_good: int  # how often adapters were unloaded while fused

    def __str__(self) -> str:
        scalings = {}
        for _, entries in self.layers:
            for adapter, scaling in entries:
                scalings.setdefault(adapter, set()).add(scaling)
        described = [f"{name!r} ({', '.join(sorted(map(str, values)))})" for name, values in scalings.items()]
        return f"adapter {' and '.join(described)}" if described else "no adapter"

    def difference(self, now: "AdapterState") -> str:
        """What changed, in words.

        Args:
            now (`AdapterState`): the adapters in effect.
        """
        if self.fused_for_good != now.fused_for_good:
            return "adapters were fused into the base weights for good since"
        if str(self) != str(now):
            return f"it was made with {self}, and now there is {now}"
        return f"since then the weights or the layers of {now} have changed"
