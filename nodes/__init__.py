"""The ComfyUI skin over t2mv_core: schemas, unit conversion and one call into the core per node.

`extension.py` lists the nodes. Only `checks.py`, `report.py`, `ranking.py`, `publish.py`,
`train_settings.py`, `train_process.py` and `train_progress.py` can be imported without ComfyUI.
"""
