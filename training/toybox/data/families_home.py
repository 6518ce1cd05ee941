"""Toybox families of small things: crockery, tools, toys. Front is -y, right is +x, up is +z."""

from __future__ import annotations

from .shapes import Part, Proportions, taper, turned

_UPRIGHT_RING = turned("x", 90)  # a torus lying in the x-z plane

MUG = {
    "radius": (0.25, 0.31),
    "height": (0.56, 0.80),
    "handle": (0.13, 0.18),
    "tube": (0.035, 0.05),
    "badge": (0.09, 0.13),
}


def mug(p: Proportions) -> list[Part]:
    """A cup with a handle on the right and a badge on the front."""
    half, radius = p["height"] / 2, p["radius"]
    return [
        Part("cup", (radius, half, 0.035), (-0.09, 0, 0)),
        Part("torus", (p["handle"], p["tube"]), (radius - 0.09, 0, 0), "part", _UPRIGHT_RING),
        Part("ellipsoid", (p["badge"], 0.05, p["badge"]), (-0.09, -radius + 0.005, 0), "accent"),
        Part("cylinder", (radius + 0.012, 0.02), (-0.09, 0, half - 0.02), "tint"),
    ]


TEAPOT = {
    "radius": (0.26, 0.31),
    "height": (0.21, 0.27),
    "spout": (0.08, 0.20),
    "handle": (0.11, 0.15),
    "knob": (0.04, 0.06),
}


def teapot(p: Proportions) -> list[Part]:
    """A pot with the spout on the right, the handle on the left and a flower on the front."""
    radius, high = p["radius"], p["height"]
    return [
        Part("ellipsoid", (radius, radius, high), (0, 0, -0.06)),
        Part("cylinder", (radius * 0.6, 0.03), (0, 0, -0.06 - high + 0.02), "tint"),
        taper((radius * 0.7, 0, -0.14), (0.47, 0, p["spout"]), (0.085, 0.04)),
        Part("torus", (p["handle"], 0.038), (-radius - 0.01, 0, -0.04), "part", _UPRIGHT_RING),
        Part("dome", (radius * 0.55, radius * 0.55, 0.09), (0, 0, high - 0.09), "tint"),
        Part("ellipsoid", (p["knob"],) * 3, (0, 0, high + 0.03), "part"),
        Part("ellipsoid", (0.09, 0.04, 0.09), (0, -radius, -0.05), "accent"),
    ]


HAMMER = {
    "grip": (0.062, 0.080),
    "head": (0.075, 0.095),
    "face": (0.17, 0.23),
    "claw": (0.20, 0.27),
    "height": (0.27, 0.33),
}


def hammer(p: Proportions) -> list[Part]:
    """A chunky hammer standing on its handle: striking face on the right, claw on the left."""
    z, head = p["height"], p["head"]
    return [
        Part("cone", (p["grip"], p["grip"] * 0.75, (z + 0.47) / 2), (0, 0, (z - 0.47) / 2)),
        Part("cylinder", (p["grip"] * 1.15, 0.05), (0, 0, -0.42)),
        Part("cylinder", (p["grip"] * 1.08, 0.02), (0, 0, -0.20), "tint"),
        taper((-0.06, 0, z), (p["face"] - 0.07, 0, z), (head * 0.75, head * 0.75), "part"),
        taper((p["face"] - 0.08, 0, z), (p["face"], 0, z), (head, head), "part"),
        taper((-0.04, 0, z), (-p["claw"], 0, z - 0.09), (head * 0.72, 0.015), "part"),
    ]


UMBRELLA = {
    "radius": (0.42, 0.48),
    "height": (0.28, 0.38),
    "rim": (0.02, 0.10),
    "hook": (0.06, 0.085),
    "pole": (0.020, 0.027),
}


def umbrella(p: Proportions) -> list[Part]:
    """An open umbrella on a thin pole that ends in a hook to the right."""
    rim, hook = p["rim"], p["hook"]
    bottom = -0.46 + hook
    return [
        Part("dome", (p["radius"], p["radius"], p["height"]), (0, 0, rim)),
        Part("cone", (0.02, 0.008, 0.04), (0, 0, rim + p["height"] + 0.02), "part"),
        Part("cylinder", (p["pole"], (rim + 0.1 - bottom) / 2), (0, 0, (rim + 0.1 + bottom) / 2), "part"),
        Part("arch", (hook, p["pole"] + 0.006), (hook, 0, bottom), "part", turned("x", -90)),
    ]


ROBOT = {
    "torso": (0.18, 0.23),
    "chest": (0.19, 0.24),
    "head": (0.13, 0.18),
    "leg": (0.055, 0.075),
    "arm": (0.045, 0.06),
}


def robot(p: Proportions) -> list[Part]:
    """A boxy robot that faces front: lit eyes, a panel on the chest, a pack on the back."""
    w, h, head, leg, arm = p["torso"], p["chest"], p["head"], p["leg"], p["arm"]
    hip = -0.24
    neck = hip + 2 * h
    sides = [
        part
        for x in (-1, 1)
        for part in (
            Part("box", (leg, leg, 0.13, 0.02), (x * w * 0.55, 0, hip - 0.11)),
            Part("box", (leg + 0.01, leg + 0.045, 0.035, 0.015), (x * w * 0.55, -0.035, -0.44), "tint"),
            Part("box", (arm, arm, 0.17, 0.02), (x * (w + arm + 0.005), 0, neck - 0.20), "part"),
            Part("ellipsoid", (0.036, 0.03, 0.036), (x * head * 0.45, -0.125, neck + 0.13), "light"),
            Part("box", (0.025, 0.045, 0.05, 0.01), (x * (head + 0.015), 0, neck + 0.12), "dark"),
        )
    ]
    return [
        Part("box", (w, 0.14, h, 0.03), (0, 0, hip + h)),
        Part("box", (head, 0.125, 0.105, 0.03), (0, 0, neck + 0.115)),
        Part("box", (w * 0.6, 0.02, h * 0.42, 0.01), (0, -0.14, hip + h * 1.15), "accent"),
        Part("box", (head * 0.55, 0.015, 0.017, 0.005), (0, -0.125, neck + 0.065), "dark"),
        Part("box", (w * 0.65, 0.06, h * 0.55, 0.02), (0, 0.18, hip + h * 1.2), "dark"),
        *sides,
    ]
