"""Names become files before anything is read; nothing is fetched unasked."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from t2mv_core.formats import sources as module
from t2mv_core.formats.sources import ModelSources, resolve_sources

FULL_NAMES = {
    "stabilityai/stable-diffusion-xl-base-1.0": ("unet", "vae", "text_encoder", "text_encoder_2"),
    "latent-consistency/lcm-sdxl": ("",),
    "madebyollin/sdxl-vae-fp16-fix": ("",),
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub whose cache is a folder; `remote` is what a download could bring."""

    class Hub:
        remote: set[tuple[str, str]] = set()
        fetched: list[tuple[str, str]] = []

        def file(self, repo_id, filename, allow_download):
            path = tmp_path / "cache" / repo_id.replace("/", "--") / filename
            if not path.is_file():
                if not allow_download or (repo_id, filename) not in self.remote:
                    raise FileNotFoundError(f"{repo_id!r}: {filename} is not in the Hub's local cache")
                self.fetched.append((repo_id, filename))
                self.put(repo_id, filename)
            return path

        def put(self, repo_id, filename):
            path = tmp_path / "cache" / repo_id.replace("/", "--") / filename
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    hub = Hub()
    hub.remote, hub.fetched = set(), []
    monkeypatch.setattr(module, "hub_file", hub.file)
    return hub


def fill(hub, put, variant=".fp16"):
    """Everything the lcm-sdxl preset can need."""
    for repo, folders in FULL_NAMES.items():
        for folder in folders:
            stem = "model" if folder.startswith("text") else "diffusion_pytorch_model"
            for name in ("config.json", f"{stem}{variant}.safetensors"):
                put(repo, f"{folder}/{name}".lstrip("/"))
    put("stabilityai/stable-diffusion-xl-base-1.0", "scheduler/scheduler_config.json")
    put("huanngzh/mv-adapter", "mvadapter_t2mv_sdxl.safetensors")


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_published_presets_come_from_the_cache(hub, variant):
    fill(hub, hub.put, variant)
    lcm, sdxl = resolve_sources(ModelSources("lcm-sdxl")), resolve_sources(ModelSources("sdxl"))
    assert lcm.unet.name == "latent-consistency--lcm-sdxl"
    assert sdxl.unet.parent.name == "stabilityai--stable-diffusion-xl-base-1.0"
    assert lcm.vae.name == sdxl.vae.name == "madebyollin--sdxl-vae-fp16-fix"
    assert lcm.adapter.name == "mvadapter_t2mv_sdxl.safetensors"
    assert (lcm.text_encoder.name, lcm.text_encoder_2.name) == ("text_encoder", "text_encoder_2")
    assert lcm.scheduler == sdxl.scheduler
    assert lcm.scheduler.name == "scheduler"
    assert hub.fetched == []


def test_presets_are_not_downloaded_unasked(hub):
    fill(hub, lambda *name: hub.remote.add(name))
    with pytest.raises(FileNotFoundError, match="not in the Hub's local cache"):
        resolve_sources(ModelSources("lcm-sdxl"))
    assert hub.fetched == []


def test_a_download_takes_half_precision_and_only_what_is_needed(hub):
    fill(hub, lambda *name: hub.remote.add(name))
    fill(hub, lambda *name: hub.remote.add(name), variant="")
    resolve_sources(ModelSources("lcm-sdxl", allow_download=True))
    weights = [name for _, name in hub.fetched if "model" in name and name.endswith("safetensors")]
    assert weights
    assert all(".fp16." in name for name in weights)
    # SDXL's own UNet (5 GB) is not needed beside LCM-SDXL's.
    assert not [name for _, name in hub.fetched if name.startswith("unet/")]
    assert len(hub.fetched) == len(set(hub.fetched)) == 2 * 4 + 2


def test_a_repository_without_half_precision_gives_the_whole(hub):
    fill(hub, lambda *name: hub.remote.add(name), variant="")
    resolve_sources(ModelSources("sdxl", allow_download=True))
    assert ("madebyollin/sdxl-vae-fp16-fix", "diffusion_pytorch_model.safetensors") in hub.fetched


def test_a_repository_in_shards_is_fetched_whole(hub, tmp_path, monkeypatch):
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {f"weight{i}": Path(shard).name for i, shard in enumerate(shards)}
    monkeypatch.setattr(module, "places_of", lambda index: places)
    fill(hub, lambda *name: hub.remote.add(name), variant="")
    repository = "stabilityai/stable-diffusion-xl-base-1.0"
    hub.remote.discard((repository, "unet/diffusion_pytorch_model.safetensors"))
    hub.remote |= {
        (repository, name) for name in (*shards, "unet/diffusion_pytorch_model.safetensors.index.json")
    }
    resolve_sources(ModelSources("sdxl", allow_download=True))
    assert {(repository, shard) for shard in shards} <= set(hub.fetched)
    cached = tmp_path / "cache" / repository.replace("/", "--") / shards[1]
    cached.unlink()  # the download was interrupted before it
    hub.fetched.clear()
    resolve_sources(ModelSources("sdxl", allow_download=True))
    assert hub.fetched == [(repository, shards[1])]


def test_a_bundled_model_takes_another_adapter(tmp_path):
    adapter = tmp_path / "mine.safetensors"
    adapter.touch()
    assert resolve_sources(ModelSources("toybox", str(adapter))).adapter == adapter
    assert resolve_sources(ModelSources("toybox")).adapter.name == "mvadapter.safetensors"


def test_what_is_named_takes_the_place_of_the_presets(hub, lcm_folder):
    own = {
        "unet": lcm_folder / "unet",
        "vae": lcm_folder / "vae",
        "adapter": lcm_folder / "mvadapter.safetensors",
    }
    fill(hub, hub.put)
    files = resolve_sources(ModelSources("lcm-sdxl", **{part: str(path) for part, path in own.items()}))
    assert {part: getattr(files, part) for part in own} == own


@pytest.mark.parametrize(
    ("adapter", "repo", "file"),
    [
        ("some/adapter", "some/adapter", "mvadapter_t2mv_sdxl.safetensors"),
        ("some/adapter/other.safetensors", "some/adapter", "other.safetensors"),
    ],
)
def test_the_adapter_may_be_a_hub_id(hub, lcm_folder, adapter, repo, file):
    hub.put(repo, file)
    found = resolve_sources(ModelSources(str(lcm_folder), adapter=adapter)).adapter
    assert (found.parent.name, found.name) == (repo.replace("/", "--"), file)


@pytest.mark.parametrize(
    "adapter", ["gone.safetensors", "/no/where.safetensors", "../up/gone.safetensors", "gone"]
)
def test_a_missing_adapter_file_is_named(lcm_folder, adapter):
    with pytest.raises(FileNotFoundError, match="is missing; the adapter's name is wrong"):
        resolve_sources(ModelSources(str(lcm_folder), adapter=adapter))


def test_a_single_file_is_every_part(tmp_path):
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.touch()
    with pytest.raises(FileNotFoundError, match="No MV-Adapter was named"):
        resolve_sources(ModelSources(str(checkpoint)))
    (tmp_path / "mvadapter_t2mv_sdxl.safetensors").touch()
    files = resolve_sources(ModelSources(str(checkpoint)))
    assert {files.unet, files.vae, files.text_encoder, files.text_encoder_2} == {checkpoint}
    assert files.scheduler is None
    assert files.adapter == tmp_path / "mvadapter_t2mv_sdxl.safetensors"


def test_a_folder_named_for_a_part_may_be_a_whole_model(lcm_folder, ddim_folder):
    sources = ModelSources(str(ddim_folder))
    adapter = str(lcm_folder / "mvadapter.safetensors")
    files = resolve_sources(replace(sources, unet=str(lcm_folder), vae=str(lcm_folder), adapter=adapter))
    assert (files.unet, files.vae) == (lcm_folder / "unet", lcm_folder / "vae")


def test_a_missing_file_is_not_taken_for_a_hub_id(tmp_path, lcm_folder):
    with pytest.raises(FileNotFoundError, match=r"no weights file 'models/gone\.safetensors'"):
        resolve_sources(
            ModelSources("models/gone.safetensors", adapter=str(lcm_folder / "mvadapter.safetensors"))
        )
    with pytest.raises(FileNotFoundError, match="no weights file"):
        resolve_sources(ModelSources(str(lcm_folder), unet=str(tmp_path / "gone.safetensors")))


def test_a_repository_in_a_hubs_cache_is_its_current_snapshot(lcm_folder, tmp_path):
    repository, sha = tmp_path / "models--someone--tiny", "4621659"
    shutil.copytree(lcm_folder, repository / "snapshots" / "0000000")
    (repository / "snapshots" / sha).symlink_to(lcm_folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(f"{sha}\n")
    snapshot = repository / "snapshots" / sha
    files = resolve_sources(ModelSources(str(repository)))
    assert (files.unet, files.adapter) == (snapshot / "unet", snapshot / "mvadapter.safetensors")
    assert files.scheduler == snapshot / "scheduler"
    assert resolve_sources(ModelSources(str(lcm_folder), vae=str(repository))).vae == snapshot / "vae"


def test_fields_keep_their_order():
    """The trainer and its users' scripts name model and adapter by position."""
    assert ModelSources("m", "a", "u", "s", True, "v") == ModelSources(
        model="m", adapter="a", unet="u", scheduler="s", allow_download=True, vae="v"
    )
    assert Path("m").name == ModelSources("m").model
