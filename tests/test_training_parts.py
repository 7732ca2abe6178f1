"""The parts of a training one by one: pictures, cache, batches, options, the model's calls and the LoRA's names."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resdit_ext import ResDiTError
from resdit_ext.families import families
from resdit_ext.method.layout import Grid
from resdit_ext.method.shift import shifted_sigmas
from resdit_ext.training import rpe2d
from resdit_ext.training.batches import Batches, inference_places, own_places
from resdit_ext.training.cache import Cache, Encoders, Example, save_whole
from resdit_ext.training.loop import Sizes
from resdit_ext.training.lora import add_lora, learning, lora_weights
from resdit_ext.training.optimizer import make_optimizer
from resdit_ext.training.options import TrainingOptions
from resdit_ext.training.parts import ModelParts, find_model
from resdit_ext.training.pictures import Damaged, boxes_of, bucket_of, buckets, opened, read_folder, shown, size_of
from resdit_ext.training.state import StateFiles
from resdit_ext.training.trainer import rate_at
from tests import pipelines, reference
from tests.training_models import save_pictures

FLUX, SD3 = families()[:2]
GIVEN = dict(caption=None, size=64, pixels_per_token=16, crops=2, largest=2.0, seed=0)


def options(tmp_path, **changes):
    return TrainingOptions(tmp_path / "model", tmp_path / "images", tmp_path / "lora.safetensors", **changes)


# Pictures


@given(st.integers(64, 2048).map(lambda n: n // 16 * 16))
def test_buckets_have_about_the_same_area_and_every_shape_both_ways(size):
    found = buckets(size, 16)
    tokens = (size // 16) ** 2
    assert Grid(size // 16, size // 16) in found
    assert {(grid.width, grid.height) for grid in found} == {(grid.height, grid.width) for grid in found}
    assert all(abs(grid.tokens / tokens - 1) < 0.3 for grid in found if tokens > 100)


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(1000, 1000, (64, 64)), (1080, 1920, (48, 85)), (3000, 1400, (90, 45))]
)
def test_a_picture_goes_to_the_bucket_of_its_shape(height, width, grid):
    assert bucket_of(height, width, buckets(1024, 16)) == Grid(*grid)


@given(st.integers(64, 900), st.integers(64, 900), st.integers(0, 2**16), st.floats(1, 4))
def test_boxes_are_in_the_picture_have_the_buckets_shape_and_enlarge_nothing(height, width, seed, largest):
    bucket = bucket_of(height, width, buckets(64, 16))
    h, w = 16 * bucket.height, 16 * bucket.width
    rng = np.random.default_rng(seed)
    if height < h or width < w:
        with pytest.raises(Damaged, match=f"it is {width}x{height} pixels, smaller than the {w}x{h}"):
            boxes_of(height, width, bucket, 16, 3, largest, rng)
        return
    found = boxes_of(height, width, bucket, 16, 3, largest, rng)
    whole = found[0]
    assert whole[0] == pytest.approx(width - whole[2]) and whole[1] == pytest.approx(height - whole[3])
    assert min(whole[0], whole[1]) == pytest.approx(0, abs=1e-6)
    assert len(found) == (4 if min(height / h, width / w) > 1 else 1)
    for left, top, right, bottom in found:
        assert -1e-9 <= left and -1e-9 <= top and right <= width + 1e-9 and bottom <= height + 1e-9
        assert right - left >= w - 1e-6 and (whole[2] - whole[0]) / (right - left) <= largest + 1e-6
        assert (right - left) / w == pytest.approx((bottom - top) / h, rel=1e-6)


def test_transparent_is_white_and_exif_turns(tmp_path):
    clear = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    assert torch.equal(shown(clear, (0, 0, 64, 32), 16, 32), torch.ones(1, 3, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "turned.jpg", exif=exif)
    assert size_of(tmp_path / "turned.jpg") == (64, 32) and opened(tmp_path / "turned.jpg").size == (32, 64)


def test_an_empty_folder_and_no_folder_are_named(tmp_path):
    with pytest.raises(ResDiTError, match=r"images is .*, a folder without pictures; put some there \(\.png"):
        read_folder(tmp_path, **GIVEN)
    with pytest.raises(ResDiTError, match=r"images is .*missing', which is no folder; name the folder of"):
        read_folder(tmp_path / "missing", **GIVEN)


def test_missing_captions_are_counted_and_named_and_may_be_given(tmp_path):
    save_pictures(tmp_path)
    (tmp_path / "1.txt").unlink()
    (tmp_path / "2.txt").write_text(" \n", encoding="utf8")
    with pytest.raises(ResDiTError, match=r"2 of 4 pictures in .* have no caption: 1\.png, 2\.png; write a \.txt"):
        read_folder(tmp_path, **GIVEN)
    pictures, _ = read_folder(tmp_path, **GIVEN | {"caption": "for all"})
    assert [picture.caption for picture in pictures] == ["picture a", "for all", "for all", "picture d"]
    (tmp_path / "1.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ResDiTError, match=r"the caption .*1\.txt is not text in UTF-8"):
        read_folder(tmp_path, **GIVEN)


def test_small_and_damaged_pictures_are_left_out_by_name(tmp_path):
    save_pictures(tmp_path, sizes=((100, 100), (40, 40)))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.txt").write_text("x", encoding="utf8")
    pictures, left_out = read_folder(tmp_path, **GIVEN)
    assert [picture.path.name for picture in pictures] == ["0.png"]
    assert left_out["1.png"] == "it is 40x40 pixels, smaller than the 64x64 that it would be trained at"
    assert left_out["broken.png"].startswith("it cannot be read (UnidentifiedImageError")
    (tmp_path / "0.png").unlink()
    with pytest.raises(
        ResDiTError, match=r"none of the 2 pictures .* can be used; 1\.png: it is 40x40 .* --size below 64"
    ):
        read_folder(tmp_path, **GIVEN)


def test_a_picture_that_is_cut_off_is_found_when_it_is_read_and_the_others_are_kept(tmp_path):
    folder = save_pictures(tmp_path / "images", sizes=((100, 100), (100, 100)))
    content = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(content[: len(content) // 2])
    pictures, left_out = read_folder(folder, **GIVEN)
    assert not left_out
    encoders = Encoders(ModelParts(FLUX, tmp_path, None), torch.float32, torch.device("cpu"))
    encoders.latent = lambda pixels: pixels[:, :, ::8, ::8].half()
    encoders.text = lambda caption: {"text": torch.full((1, 3), float(len(caption)))}
    cache, said = Cache(tmp_path / "cache", encoders, "cropped, "), []
    cache.fill(pictures, slice(0, None), said.append, quiet=True)
    assert len(said) == 1
    assert re.fullmatch(r".*0\.png is left out: it cannot be read \(OSError.*\)", said[0])
    (example,) = cache.examples(pictures)
    assert example.views == 3
    (latent, text), (_, of_crop) = example.read(0), example.read(1)
    assert latent.shape == (1, 3, 8, 8)
    assert float(of_crop["text"][0, 0] - text["text"][0, 0]) == len("cropped, ")


# What a step sees


def examples_in(folder, shapes=((4, 4), (4, 4), (4, 4), (3, 5), (3, 5))):
    folder.mkdir(exist_ok=True)
    made = []
    for i, (rows, cols) in enumerate(shapes):
        tensors = {f"latent/{view}": torch.full((1, 2, 2 * rows, 2 * cols), i + view / 10) for view in range(2)}
        tensors |= {f"{of}/text": torch.full((1, 3), 10 * i + k) for k, of in enumerate(("whole", "crop"))}
        save_whole(tensors, folder / f"{i}.safetensors", {})
        made.append(Example(folder / f"{i}.safetensors", Grid(rows, cols), 2))
    return made


def batches_of(tmp_path, examples, **changes):
    chosen = options(tmp_path, **{"text_dropout": 0.0} | changes)
    return Batches(examples, {"text": torch.full((1, 3), -1)}, chosen, maximal=16, shift=1.15)


def test_an_epoch_shows_every_picture_and_the_next_in_another_order(tmp_path):
    batches = batches_of(tmp_path, examples_in(tmp_path / "cache"), batch=2)
    assert len(batches) == 3  # two of the squares, the last filled up, and one of the others
    seen = [[int(x[0, 0, 0]) for x in batches[i].latent] for i in range(9)]
    for first in range(0, 9, 3):
        assert {i for batch in seen[first : first + 3] for i in batch} == set(range(5))
    assert len({str(seen[first : first + 3]) for first in range(0, 9, 3)}) > 1
    again = batches_of(tmp_path, examples_in(tmp_path / "cache"), batch=2)
    for i in (0, 5):
        one, two = batches[i], again[i]
        assert torch.equal(one.noise, two.noise) and torch.equal(one.sigma, two.sigma)
        assert torch.equal(one.places.rows, two.places.rows) and torch.equal(one.latent, two.latent)
    assert not torch.equal(batches[0].noise[:, :, :6, :6], batches[3].noise[:, :, :6, :6])


def test_the_shares_are_those_of_the_options(tmp_path):
    examples = examples_in(tmp_path / "cache")
    batches = batches_of(tmp_path, examples, native_share=0.25, text_dropout=0.5)
    seen = [batches[i] for i in range(400)]
    native = np.mean([batch.places.maximal == Grid(*(len(axis) for axis in batch.places[:2])) for batch in seen])
    empty = np.mean([float(batch.text["text"][0, 0]) == -1 for batch in seen])
    assert abs(native - 0.25) < 0.1 and abs(empty - 0.5) < 0.1  # four standard errors
    logits = torch.logit(torch.cat([batch.sigma for batch in seen]))
    assert abs(float(logits.mean()) - 1.15) < 0.2 and abs(float(logits.std()) - 1) < 0.15
    for batch in seen:
        if batch.places.maximal == Grid(16, 16):
            assert all((axis.diff() > 0).all() and axis[0] >= 0 and axis[-1] < 16 for axis in batch.places[:2])
        else:
            assert batch.places[2] in (Grid(4, 4), Grid(3, 5))
            assert all(torch.equal(axis, torch.arange(len(axis)).double()) for axis in batch.places[:2])
    crops = np.mean([float(batch.latent[0, 0, 0, 0]) % 1 > 0.05 for batch in seen])
    assert abs(crops - 0.5) < 0.1
    alone = batches_of(tmp_path, examples, native_share=0.0)
    assert all(alone[i].places.maximal == Grid(16, 16) for i in range(50))


def test_the_rate_rises_and_falls(tmp_path):
    chosen = options(tmp_path, steps=1000, rate=1e-3)
    rates = [rate_at(step, chosen) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5) and rates[99] == rates[500] == rates[800] == 1e-3
    assert rates[-1] == pytest.approx(5e-6)
    assert all(0 < rate <= 1e-3 for rate in (rate_at(step, options(tmp_path, steps=1)) for step in range(1)))


def test_noise_levels_are_shifted_as_the_samplers_shift_them():
    found = shifted_sigmas(4, 1.0)
    a = np.e
    assert found == pytest.approx([a * t / (1 + (a - 1) * t) for t in (1, 0.75, 0.5, 0.25, 0)])


# The model's calls


def call_of(family, transformer, places, sigma=(0.3, 0.8), **changes):
    grid = Grid(len(places.rows), len(places.cols))
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 16, 2 * grid.height, 2 * grid.width, generator=generator)
    text = {"encoder_hidden_states": torch.randn(2, 5, 12, generator=generator)}
    text["pooled_projections"] = torch.randn(2, 8, generator=generator)
    with torch.inference_mode():
        made = family.training.predictor(transformer)(
            transformer, latent, torch.tensor(sigma), text, places, changes.get("guidance", 1.0)
        )
    return latent, torch.tensor(sigma), text, made


@pytest.mark.parametrize(
    "places", [own_places(Grid(4, 6)), inference_places(Grid(4, 6), 11)], ids=["own", "of a range"]
)
def test_flux_is_called_at_the_places(places):
    transformer = pipelines.flux(guidance_embeds=True)
    latent, sigma, text, made = call_of(FLUX, transformer, places, guidance=2.0)
    pos = np.array([(row, col) for row in places.rows.numpy() for col in places.cols.numpy()])
    ids = torch.from_numpy(reference.ids_of(0, pos)).float()
    tokens = torch.stack([torch.from_numpy(reference.to_tokens(x.numpy())).flatten(0, 1) for x in latent]).float()
    with torch.inference_mode():
        expected = transformer(
            hidden_states=tokens,
            timestep=sigma,
            guidance=torch.full((2,), 2.0),
            img_ids=ids,
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
            **text,
        )[0]
    for one, other in zip(made, expected, strict=True):
        assert np.allclose(reference.to_tokens(one.numpy()), other.unflatten(0, (4, 6)).numpy(), atol=1e-5)


def test_sd3_is_called_at_its_own_places_as_it_is_without_us():
    transformer = pipelines.sd3()
    latent, sigma, text, made = call_of(SD3, transformer, own_places(Grid(4, 6)))
    with torch.inference_mode():
        expected = transformer(hidden_states=latent, timestep=1000 * sigma, return_dict=False, **text)[0]
    assert torch.allclose(made, expected, atol=1e-5)


def test_sd3_is_called_at_the_places_of_a_range(monkeypatch):
    transformer, places = pipelines.sd3(), inference_places(Grid(4, 6), 10)
    latent, sigma, text, made = call_of(SD3, transformer, places)
    side, width = 12, 32
    step = (8 // 2) / side  # diffusers' index i stands at i * base_size / pos_embed_max_size
    index = ((side - 10) // 2 + axis.numpy() for axis in places[:2])
    positions = torch.from_numpy(reference.sincos_table(*index, width, step)).float().reshape(1, -1, width)
    monkeypatch.setattr(transformer.pos_embed, "cropped_pos_embed", lambda *_: positions)
    with torch.inference_mode():
        expected = transformer(hidden_states=latent, timestep=1000 * sigma, return_dict=False, **text)[0]
    assert torch.allclose(made, expected, atol=1e-5)


# The LoRA


def test_a_lora_does_nothing_at_first_and_is_all_that_learns():
    plain, transformer = pipelines.flux(), pipelines.flux().bfloat16()
    places = own_places(Grid(4, 4))
    before = call_of(FLUX, plain, places)[-1]
    add_lora(plain, FLUX.training.layers, 2, seed=0)
    assert torch.equal(call_of(FLUX, plain, places)[-1], before)
    add_lora(transformer, FLUX.training.layers, 2, seed=0)
    assert all(parameter.dtype == torch.float32 for parameter in learning(transformer).values())
    names = {name.split(".lora_")[0] for name in learning(transformer)}
    # One dual block of eight layers and two single blocks of three.
    assert len(names) == 8 + 2 * 3 and all(".attn." in name for name in names)
    assert all(name.startswith("transformer.") and ".default" not in name for name in lora_weights(transformer))


def test_the_webuis_names_of_sd3_are_the_same_changes():
    """The products W = B A, per layer of diffusers', are rows of those of the WebUIs' layers."""
    transformer = pipelines.sd3()
    add_lora(transformer, SD3.training.layers, 2, seed=0)
    for parameter in learning(transformer).values():
        parameter.data.normal_()
    mine = {name: x.float() for name, x in lora_weights(transformer).items()}
    theirs = SD3.training.webui_names(mine)

    def product(weights, layer):
        return weights[f"{layer}.lora_B.weight"] @ weights[f"{layer}.lora_A.weight"]

    used = set()
    for i in range(2):
        for attention, whose, ours in (
            ("attn", "x_block.attn", ("to_q", "to_k", "to_v")),
            ("attn", "context_block.attn", ("add_q_proj", "add_k_proj", "add_v_proj")),
            *([("attn2", "x_block.attn2", ("to_q", "to_k", "to_v"))] if i == 0 else []),
        ):
            rows = [product(mine, f"transformer.transformer_blocks.{i}.{attention}.{layer}") for layer in ours]
            fused = f"diffusion_model.joint_blocks.{i}.{whose}.qkv"
            assert torch.allclose(product(theirs, fused), torch.cat(rows), atol=1e-5)
            used.add(fused)
        for attention, whose, layer in (
            ("attn", "x_block.attn", "to_out.0"),
            *([("attn", "context_block.attn", "to_add_out"), ("attn2", "x_block.attn2", "to_out.0")] if i == 0 else []),
        ):
            name = f"diffusion_model.joint_blocks.{i}.{whose}.proj"
            assert torch.equal(
                product(theirs, name), product(mine, f"transformer.transformer_blocks.{i}.{attention}.{layer}")
            )
            used.add(name)
    assert {name.split(".lora_")[0] for name in theirs} == used


def test_the_optimizer_is_the_one_of_8_bits_where_it_can_be(monkeypatch):
    learns = {"x": torch.nn.Parameter(torch.ones(2))}
    eight = type("AdamW8bit", (torch.optim.AdamW,), {})
    package = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=eight))
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", package.optim)
    assert type(make_optimizer("auto", learns, 1e-3, on_cuda=True, divided=False)) is eight
    assert type(make_optimizer("adamw", learns, 1e-3, on_cuda=True, divided=False)) is torch.optim.AdamW
    assert type(make_optimizer("auto", learns, 1e-3, on_cuda=True, divided=True)) is torch.optim.AdamW
    assert type(make_optimizer("auto", learns, 1e-3, on_cuda=False, divided=False)) is torch.optim.AdamW
    for given_, what in (((True, True), "a training that FSDP does not divide"), ((False, False), "a CUDA device")):
        with pytest.raises(ResDiTError, match=f"optimizer is 'adamw-8bit', which needs {what}; or choose 'adamw'"):
            make_optimizer("adamw-8bit", learns, 1e-3, *given_)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert type(make_optimizer("auto", learns, 1e-3, on_cuda=True, divided=False)) is torch.optim.AdamW
    with pytest.raises(ResDiTError, match=r"needs bitsandbytes \(pip install bitsandbytes\)"):
        make_optimizer("adamw-8bit", learns, 1e-3, on_cuda=True, divided=False)


def test_a_state_is_whole_or_not_there_and_of_as_many_parts(tmp_path):
    learns = {"x": torch.nn.Parameter(torch.arange(3.0))}
    optimizer = torch.optim.AdamW(learns.values(), lr=0.1)
    learns["x"].sum().backward()
    optimizer.step()
    alone, parts = StateFiles(tmp_path, {"rank": 2}), [StateFiles(tmp_path, {"rank": 2}, i, 2) for i in range(2)]
    assert alone.last_step() is None
    alone.save(3, learns, optimizer)
    parts[0].save(6, learns, optimizer)
    assert alone.last_step() == 3
    after, state = learns["x"].detach().clone(), optimizer.state[learns["x"]]["exp_avg"].clone()
    learns["x"].data.zero_()
    optimizer.state.clear()
    alone.load(3, learns, optimizer)
    assert torch.equal(learns["x"], after) and torch.equal(optimizer.state[learns["x"]]["exp_avg"], state)
    parts[1].save(6, learns, optimizer)
    assert parts[0].last_step() == 6
    with pytest.raises(ResDiTError, match="is in 2 parts, of as many processes under FSDP, and this training has 1"):
        alone.last_step()
    alone.forget_before(6)
    assert len(list(tmp_path.iterdir())) == 2


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be a whole number from 1 to 1024"),
        ({"native_share": 1.5}, "native_share is 1.5; it must be a number from 0.0 to 1.0"),
        ({"maximal_range": 5000}, "maximal_range is 5000; it must be a whole number from 1 to 4096"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; choose one of 'auto', 'adamw', 'adamw-8bit'"),
        ({"rate": float("nan")}, "rate is nan; it must be a number from 1e-08 to 1.0"),
        ({"steps": 1.5}, "steps is 1.5; it must be a whole number"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, changes, message):
    with pytest.raises(ResDiTError, match=re.escape(message)):
        options(tmp_path, **changes)


def test_sizes_are_the_familys_or_whole_tokens(tmp_path):
    assert Sizes.of(options(tmp_path), FLUX) == Sizes(1024, 256, Grid(64, 64), 1.15)
    chosen = options(tmp_path, size=512, maximal_range=200, validation_size=2048, noise_shift=0.5)
    assert Sizes.of(chosen, SD3) == Sizes(512, 200, Grid(128, 128), 0.5)
    with pytest.raises(ResDiTError, match="validation_size is 1000; it must be a multiple of 16"):
        Sizes.of(options(tmp_path, validation_size=1000), FLUX)


def folder_of(tmp_path, transformer, **config):
    (tmp_path / "transformer").mkdir(parents=True)
    (tmp_path / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", transformer]}))
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_models_that_cannot_be_trained_are_refused_by_what_they_are(tmp_path):
    with pytest.raises(
        ResDiTError, match=r"model is .*, which is no folder of a diffusers pipeline: it has no model_ind"
    ):
        find_model(tmp_path, None)
    for name in ("UNet2DConditionModel", "ChromaTransformer2DModel"):
        folder = folder_of(tmp_path / name, name)
        with pytest.raises(
            ResDiTError, match=rf"whose transformer is '{name}'; a LoRA can be trained for FLUX\.1, SD3: "
        ):
            find_model(folder, None)
    fill = folder_of(tmp_path / "fill", "FluxTransformer2DModel", in_channels=384, out_channels=64)
    with pytest.raises(ResDiTError, match="takes 384 channels and makes 64: one that is given more than a noisy"):
        find_model(fill, None)
    whole = folder_of(tmp_path / "flux", "FluxTransformer2DModel", in_channels=64)
    assert find_model(whole, None).family is FLUX
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ResDiTError, match=r"model is .*model\.safetensors', a file; name with --components a folder"):
        find_model(file, None)
    assert find_model(file, whole).file == file
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ResDiTError, match=r"model is .*model\.ckpt'; a model's file must be a \.safetensors file"):
        find_model(tmp_path / "model.ckpt", whole)
    (whole / "model_index.json").write_text("{")
    with pytest.raises(
        ResDiTError, match=r"model_index\.json cannot be read \(JSONDecodeError.*; get the model's folder"
    ):
        find_model(whole, None)


def test_the_command_says_what_is_wrong_and_what_is_not_installed(tmp_path, capsys, monkeypatch):
    argv = ["--model", str(tmp_path), "--images", str(tmp_path), "--out", str(tmp_path / "lora.pt")]
    assert rpe2d.main(argv) == 2
    assert capsys.readouterr().err.startswith("error: out is ")
    argv[-1] = str(tmp_path / "lora.safetensors")
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "resdit_ext.training.loop")
    monkeypatch.delitem(sys.modules, "resdit_ext.training.lora")
    assert rpe2d.main(argv) == 2
    assert "error: peft is not installed; run: pip install diffusers" in capsys.readouterr().err
