"""Published numbers, and whether a run may stand beside them."""

from collections.abc import Iterable
from dataclasses import dataclass

from .protocols import PROTOCOLS, Protocol


__all__ = ["PUBLISHED", "Published", "differences", "published_beside"]


@dataclass(frozen=True)
class Published:
    """
    One published mean; `None` where a number was not published.

    Attributes:
        protocol (`str`): beside which runs it is shown.
        method (`str`): whose.
        references (`int`): number of references.
        psnr (`float`, *optional*): in dB.
        ssim (`float`, *optional*): by `ssim_key`.
        lpips (`float`, *optional*): by `net`.
        source (`str`): where it stands.
        size (`tuple[int, int]`, *optional*): what was scored; `None` if not known.
        ssim_key (`str`, *optional*): likewise.
        net (`str`, *optional*): likewise.
        note (`str`): over what the mean was taken, or what else sets it apart.
    """

    protocol: str
    method: str
    references: int
    psnr: float | None
    ssim: float | None
    lpips: float | None
    source: str
    size: tuple[int, int] | None
    ssim_key: str | None
    net: str | None
    note: str = ""


def differences(row: Published, protocol: Protocol, references: int, net: str | None) -> list[str]:
    """
    Fields that keep a run from a published number; none where both may stand in one table.

    Args:
        row ([`Published`]): the published number.
        protocol ([`Protocol`]): of the run.
        references (`int`): of the run.
        net (`str`, *optional*): of the run's LPIPS; `None` where it was not taken, which only leaves LPIPS out.
    """
    fields = [("views", row.references, references), ("size", row.size, protocol.size)]
    fields += [("SSIM", row.ssim_key, protocol.ssim)] if row.ssim is not None else []
    fields += [("LPIPS net", row.net, net)] if row.lpips is not None and net is not None else []
    found = [
        f"{name} ({'not published' if theirs is None else _text(theirs)}, here {_text(ours)})"
        for name, theirs, ours in fields
        if theirs is None or theirs != ours
    ]
    return found + ([row.note] if row.note.startswith("optimised") else [])


def _text(value) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def published_beside(protocol: Protocol, references: Iterable[int]) -> list[Published]:
    """Published numbers to show beside runs of a protocol with these numbers of references.

    Args:
        protocol ([`Protocol`]): of the runs.
        references (`Iterable[int]`): their numbers of references.
    """
    wanted = set(references)
    return [row for row in PUBLISHED if row.protocol == protocol.name and row.references in wanted]


def _rows(protocol: str, source: str, table: dict[str, str], note: str = "", **changed) -> list[Published]:
    """Rows of `method: "N=PSNR/SSIM/LPIPS ..."`, a dash where a number is missing."""
    record = PROTOCOLS[protocol]
    known = {"size": record.size, "ssim_key": record.ssim, "net": record.lpips, **changed}
    rows = []
    for method, entries in table.items():
        for entry in entries.split():
            count, _, values = entry.partition("=")
            scores = [None if value == "-" else float(value) for value in values.split("/")]
            scores += [None] * (3 - len(scores))
            rows.append(Published(protocol, method, int(count), *scores, source=source, note=note, **known))
    return rows


_GSO = {
    "Zero123": "1=18.51/.856/.127",
    "Zero123-XL": "1=18.93/.856/.124",
    "EscherNet 4DoF": "1=20.24/.884/.095 2=22.91/.908/.064 3=24.09/.918/.052 5=25.09/.927/.043 10=25.90/.935/.036",
    "EscherNet 6DoF": "1=20.89/.886/.093 2=23.92/.917/.057 3=25.21/.927/.045 5=26.59/.937/.036 10=27.75/.947/.030",
}
_RTMV = {
    "Zero123-XL": "1=10.59/.520/.401",
    "EscherNet 4DoF": "1=10.56/.518/.410 2=12.66/.585/.301 3=13.59/.611/.258 5=14.52/.633/.222 10=15.55/.657/.185",
    "EscherNet 6DoF": "1=12.30/.569/.332 2=14.18/.618/.252 3=15.06/.643/.217 5=15.71/.663/.190 10=16.58/.688/.160",
}
_NERF = {
    "InstantNGP (optimised per scene)": "1=10.92/-/.627 2=12.42/-/.499 3=14.27/-/.391 5=18.17/-/.228 10=22.96/-/.091"
    " 20=24.99/-/.058 50=26.86/-/.034 100=27.30/-/.031",
    "3DGS (optimised per scene)": "1=9.44 2=10.78 3=12.87 5=17.09 10=23.04 20=25.34 50=26.98 100=27.11",
    "EscherNet 4DoF": "1=13.36 2=14.95 3=16.19 5=17.16 10=17.74 20=17.91 50=18.05 100=18.15",
    "EscherNet 6DoF": "1=13.73/-/.294 2=15.66/-/.197 3=16.91/-/.149 5=17.72/-/.120 10=18.47/-/.103 20=18.77/-/.095"
    " 50=19.24/-/.085 100=19.28/-/.084",
}
_RE10K = {
    "pixelNeRF": "2=20.43/.589/.550",
    "pixelSplat": "2=26.09/.863/.136",
    "MVSplat": "2=26.39/.869/.128",
    "GS-LRM": "2=28.10/.892/.114",
    "LVSM encoder-decoder": "2=28.58/.893/.114",
    "LVSM decoder-only": "2=29.67/.906/.098",
}
_SEVA_SOURCE = "Stable Virtual Camera, arXiv 2503.14489"
_CAT3D = "CAT3D, arXiv 2405.10314, Table 1"
_RECONFUSION = {
    "re10k": {
        "ReconFusion": "3=25.84/.910/.144 6=29.99/.951/.103 9=31.82/.961/.092",
        "CAT3D": "3=26.78/.917/.132 6=31.07/.954/.092 9=32.20/.963/.082",
    },
    "llff": {
        "ReconFusion": "3=21.34/.724/.203 6=24.25/.815/.152 9=25.21/.848/.134",
        "CAT3D": "3=21.58/.731/.181 6=24.71/.833/.121 9=25.63/.860/.107",
    },
    "dtu": {
        "ReconFusion": "3=20.74/.875/.124 6=23.62/.904/.105 9=24.62/.921/.094",
        "CAT3D": "3=22.02/.844/.121 6=24.28/.899/.095 9=25.92/.928/.073",
    },
    "co3d": {
        "ReconFusion": "3=19.59/.662/.398 6=21.84/.714/.342 9=22.95/.736/.318",
        "CAT3D": "3=20.57/.666/.351 6=22.79/.726/.292 9=23.58/.752/.273",
    },
    "mipnerf360": {
        "ReconFusion": "3=15.50/.358/.585 6=16.93/.401/.544 9=18.19/.432/.511",
        "CAT3D": "3=16.62/.377/.515 6=17.72/.425/.482 9=18.67/.460/.460",
    },
}
_ESCHERNET = "EscherNet, arXiv 2402.03908"

PUBLISHED = (
    *_rows("gso30-eschernet", _ESCHERNET, _GSO, "mean over 30 objects"),
    *_rows("rtmv-eschernet", _ESCHERNET, _RTMV, "mean over 10 scenes"),
    *_rows("nerfsynthetic-eschernet", _ESCHERNET, _NERF, "mean over 8 scenes"),
    *_rows("re10k-pixelsplat", "the papers of the methods", _RE10K, "mean over 6,474 scenes"),
    *_rows("dl3dv-longlrm", "Long-LRM", {"Long-LRM": "32=23.86/.775/.262"}, "mean over 140 scenes"),
    *_rows("tnt-longlrm", "Long-LRM", {"Long-LRM": "32=18.20/.590/.375"}, "mean over 2 scenes"),
    *_rows("dl3dv-depthsplat", "quoted by a later paper", {"DepthSplat": "6=24.19"}, "mean over 140 scenes"),
    *_rows("seva-dl3dv140-L", _SEVA_SOURCE, {"SEVA": "32=20.96/.661/.155"}, "mean over 140 scenes"),
    *_rows("seva-dl3dv140-L", "Long-LRM", {"Long-LRM": "32=23.86/.775/.262"}, "mean over 140 scenes",
           size=(540, 960), ssim_key="c", net="vgg"),
    *_rows("seva-tnt-longlrm-L", _SEVA_SOURCE, {"SEVA": "32=16.50/.505/.236"}, "mean over 2 scenes"),
    *_rows("seva-tnt-longlrm-L", "Long-LRM", {"Long-LRM": "32=18.20/.590/.375"}, "mean over 2 scenes",
           size=(540, 960), ssim_key="c", net="vgg"),
    *(
        row
        for dataset, table in _RECONFUSION.items()
        for row in _rows(f"reconfusion-{dataset}", _CAT3D, table, "optimised per scene, not samples",
                         size=None, ssim_key=None, net=None)
    ),
)  # fmt: skip
