"""The ComfyUI skin over t2mv_core: schemas, unit conversion and one call into the core per node.

`extension.py` lists the nodes, `sockets.py` what travels between them; the folders follow ComfyUI's menu.
"""
