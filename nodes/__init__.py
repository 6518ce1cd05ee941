"""The ComfyUI skin over t2mv_core: schemas, unit conversion and one call into the core per node.

`extension.py` lists the nodes. Only `checks.py`, `report.py` and `ranking.py` can be imported
without ComfyUI.
"""
