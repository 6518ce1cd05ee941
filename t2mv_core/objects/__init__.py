"""Views to an object: silhouettes, their visual hull, its surface, its colours, and how well views agree.

    pictures ── silhouettes ── carving ── surface ── colours
                                  └── projection ── agreement, consistency

Cameras are those of `t2mv_core.cameras`: orthographic, z up, world units. Nothing here knows ComfyUI or the
trainer; all functions are pure.
"""
