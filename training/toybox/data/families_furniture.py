"""Toybox families of furniture. Front is -y, right is +x, up is +z."""

from __future__ import annotations

from .shapes import Part, Proportions, limb, taper, turned

CHAIR = {
    "width": (0.23, 0.29),
    "depth": (0.21, 0.26),
    "seat": (-0.10, 0.02),
    "back": (0.40, 0.48),
    "leg": (0.022, 0.030),
}


def chair(p: Proportions) -> list[Part]:
    """Four legs, a seat and a back that stands at the rear, padded on its front."""
    w, d, seat, top = p["width"], p["depth"], p["seat"], p["back"]
    middle, half = (seat + top) / 2, (top - seat) / 2
    legs = [
        limb(
            (x * (w - 0.03), y * (d - 0.03), seat), (x * (w - 0.03), y * (d - 0.03), -0.455), p["leg"], "part"
        )
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    return [
        Part("box", (w, d, 0.045, 0.02), (0, 0, seat)),
        Part("box", (w, 0.04, half, 0.02), (0, d - 0.04, middle)),
        Part("box", (w - 0.07, 0.025, half - 0.09, 0.02), (0, d - 0.085, middle + 0.04), "tint"),
        *legs,
    ]


TABLE = {
    "width": (0.36, 0.42),
    "depth": (0.22, 0.28),
    "top": (0.18, 0.32),
    "leg": (0.017, 0.024),
    "apron": (0.05, 0.08),
}


def table(p: Proportions) -> list[Part]:
    """A rectangular top with an apron on four straight legs."""
    w, d, top, apron = p["width"], p["depth"], p["top"], p["apron"]
    legs = [
        Part(
            "box",
            (p["leg"], p["leg"], (top + 0.40) / 2, 0.005),
            (x * (w - 0.06), y * (d - 0.06), (top - 0.40) / 2),
            "part",
        )
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    return [
        Part("box", (w, d, 0.055, 0.015), (0, 0, top)),
        Part("box", (w - 0.05, d - 0.05, apron, 0.005), (0, 0, top - 0.04 - apron)),
        *legs,
    ]


BENCH = {
    "width": (0.42, 0.47),
    "depth": (0.13, 0.18),
    "seat": (-0.14, -0.06),
    "back": (0.20, 0.30),
    "slat": (0.055, 0.075),
}


def bench(p: Proportions) -> list[Part]:
    """A long seat with a back of two slats at the rear, on metal legs."""
    w, d, seat, top, slat = p["width"], p["depth"], p["seat"], p["back"], p["slat"]
    posts = [limb((x * (w - 0.1), d, seat), (x * (w - 0.1), d + 0.02, top), 0.018, "part") for x in (-1, 1)]
    legs = [
        limb((x * (w - 0.08), y * (d - 0.03), seat), (x * (w - 0.08), y * (d - 0.03), -0.38), 0.021, "part")
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    return [
        Part("box", (w, d, 0.065, 0.02), (0, 0, seat)),
        Part("box", (w, 0.032, slat, 0.012), (0, d - 0.03, top - slat + 0.03)),
        Part("box", (w, 0.032, slat, 0.012), (0, d - 0.03, (seat + top) / 2 - slat / 2)),
        *posts,
        *legs,
    ]


SOFA = {
    "width": (0.42, 0.46),
    "depth": (0.19, 0.23),
    "seat": (0.11, 0.15),
    "arm": (0.065, 0.09),
    "back": (0.20, 0.30),
}


def sofa(p: Proportions) -> list[Part]:
    """A heavy seat between two arms, a thick back at the rear, two loose cushions on the seat."""
    w, d, seat, arm, top = p["width"], p["depth"], p["seat"], p["arm"], p["back"]
    floor = -0.30
    high = floor + 2 * seat
    inner = w - 2 * arm
    feet = [
        Part("cylinder", (0.03, 0.04), (x * (w - 0.07), y * (d - 0.06), floor - 0.04), "dark")
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    cushions = [
        Part(
            "box",
            (0.085, 0.035, 0.085, 0.03),
            (x * (inner - 0.10), -0.02, high + 0.075),
            "part",
            turned("x", -15),
        )
        for x in (-1, 1)
    ]
    return [
        Part("box", (w, d, seat, 0.03), (0, 0, floor + seat)),
        Part("box", (w - 0.01, 0.08, (top - floor) / 2, 0.05), (0, d - 0.08, (top + floor) / 2)),
        *[
            Part(
                "box",
                (arm, d + 0.01, (high + 0.13 - floor) / 2, 0.05),
                (x * (w - arm), -0.01, (high + 0.13 + floor) / 2),
            )
            for x in (-1, 1)
        ],
        Part("box", (inner, 0.02, 0.03, 0.02), (0, -d - 0.005, high - 0.045), "tint"),
        *cushions,
        *feet,
    ]


LAMP = {
    "shade": (0.30, 0.38),
    "top": (0.13, 0.22),
    "height": (0.36, 0.48),
    "base": (0.15, 0.21),
    "pole": (0.020, 0.032),
}


def lamp(p: Proportions) -> list[Part]:
    """A table lamp: a wide shade on a pole with a round base."""
    low = 0.46 - p["height"]
    return [
        taper((0, 0, low), (0, 0, 0.46), (p["shade"], p["top"])),
        Part("cylinder", (p["pole"], (low + 0.45) / 2 + 0.02), (0, 0, (low - 0.45) / 2), "part"),
        Part("cone", (p["base"], p["base"] * 0.55, 0.03), (0, 0, -0.44), "part"),
        Part("ellipsoid", (p["base"] * 0.42, p["base"] * 0.42, 0.07), (0, 0, -0.36), "part"),
    ]
