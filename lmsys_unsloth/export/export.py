"""Export a run: merge, write, compare with the run, describe; the folder appears when all of it is done."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import replacing_folder, write_json
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.form.offset import OFFSET_FILE
from lmsys_unsloth.evaluate import adjustment, differences
from lmsys_unsloth.evaluate.differences import Agreement
from lmsys_unsloth.export import card, gptq
from lmsys_unsloth.export.checking import calibration_rows, validation_rows
from lmsys_unsloth.export.exported import Exported
from lmsys_unsloth.export.formats import (
    FORMATS,
    copy_adapter,
    dtype_name,
    exported_head,
    free_memory,
    require_possible,
)
from lmsys_unsloth.export.merging import Base, load_merged
from lmsys_unsloth.model import loading, trained_weights
from lmsys_unsloth.predict.predictor import Predictor
from lmsys_unsloth.predict.sources import EXPORT, open_source
from lmsys_unsloth.prompting.encoding import RowEncoder

RAW = ("eval.calibrate=none", "eval.stack=false")
"""Changes with which a model's own probabilities are compared, before any calibration."""


def export(
    source: Path, format: str, out: Path, *, base: str = "trained", type: str = "bf16", rows: int = 100,
    force: bool = False,
) -> Exported:  # fmt: skip
    """Write a trained model to a new folder.

    Args:
        source: run directory, or the directory of a cross-validation, whose LoRA adapters are averaged.
        format: ``adapter`` or one of :data:`~lmsys_unsloth.export.formats.FORMATS`.
        out: folder to write; it must not exist, or be an earlier export.
        base: see :data:`~lmsys_unsloth.export.merging.Base`.
        type: number type of matrices in a GGUF file.
        rows: number of validation rows on which the exported model is compared with the run; 0: none.
        force: keep an export whose log loss is another.

    Raises:
        UserError: the run is unfinished or does not fit the format, the folder holds something else, or the
            exported model does not agree with it
            (:attr:`~lmsys_unsloth.evaluate.differences.Agreement.agrees`).
        WriteError: the folder can't be written.
    """
    if out.exists() and not (out / EXPORT).is_file():
        raise UserError(f"{out}: exists and is no export folder; name a new one with out=DIR.")
    opened = open_source(source)
    runs = [Run(cast(Path, member.adapter).parent) for member in opened.members]
    config = opened.members[0].config
    encoder = RowEncoder(loading.load_tokenizer(config.model), config.prompt)
    if format != "adapter":
        require_possible(FORMATS[format], config, encoder.answer_ids)
    if type != "bf16" and format != "gguf":
        raise UserError(f"type={type}: is for format=gguf; the other formats keep the model's own type.")
    if format == "gguf" and rows and find_spec("llama_cpp") is None:
        raise UserError(
            f"rows={rows}: predictions of a GGUF file are computed by llama-cpp-python, which is not "
            "installed.\n  Install it (pip install llama-cpp-python), or leave the comparison out: rows=0"
        )
    if format == "gptq8":
        gptq.require_installed()
    compared = validation_rows(runs[0], config, rows) if rows else []
    with replacing_folder(out) as work, tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        adapter = cast(Path, opened.members[0].adapter)
        if len(runs) > 1:
            adapter = Path(scratch) / "adapter"
            trained_weights.average_adapters([cast(Path, m.adapter) for m in opened.members], adapter)
        before = _reference(adapter, config, Path(scratch), compared)
        facts = _write(format, config, encoder, adapter, work, cast(Base, base), type, runs)
        facts.write(work)
        after = _predictions(work, format, Path(scratch), compared)
        found = differences.compare(before, after, compared) if compared else None
        if found is not None:
            print(f"{format} compared with {source}: {found}")
            _require_agreement(found, format, force)
        facts = dataclasses.replace(facts, agreement=found)
        facts.write(work)
        card.write(work, runs, config, facts)
    return facts


def push(folder: Path, repo: str) -> str:
    """Upload an export folder to the Hugging Face hub; the token is where huggingface_hub keeps it.

    Returns:
        Address of the repository.

    Raises:
        UserError: the hub can't be reached, or refuses the upload.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        address = str(api.create_repo(repo, exist_ok=True, private=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of lmsys_unsloth")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"push={repo}: {str(error).splitlines()[0]}\n  The folder {folder} is complete; log in with "
            f"`hf auth login`, or upload it later: hf upload {repo} {folder}"
        ) from None
    return address


def _write(
    format: str, config: Config, encoder: RowEncoder, adapter: Path, work: Path, base: Base, type: str,
    runs: Sequence[Run],
) -> Exported:  # fmt: skip
    dtype = None
    settings = _portable(config)
    if format == "adapter":
        copy_adapter(adapter, work)
    else:
        encoder.tokenizer.save_pretrained(work)
        model = load_merged(config, encoder, adapter, base)
        dtype = type if format == "gguf" else dtype_name(model)
        written = FORMATS[format]
        written.write(model, work, type)
        if (adapter / OFFSET_FILE).is_file():
            shutil.copyfile(adapter / OFFSET_FILE, work / OFFSET_FILE)
        settings["head"]["kind"] = exported_head(config) if format != "classifier" else config.head.kind
        settings["lora"] |= {"kind": "lora"}
        del model
        free_memory()
        if written.quantise is not None:
            chosen = calibration_rows(runs[0], config, gptq.CALIBRATION_ROWS)
            written.quantise(work, [row.input_ids.tolist() for row in encoder.encode(chosen)])
    return Exported(
        format, [run.path.name for run in runs], base, dtype, settings, _calibration(runs, config), None
    )


def _portable(config: Config) -> dict[str, Any]:
    """Settings without places of this machine, except that of a local base model."""
    settings = config.model_dump(mode="json")
    settings["data"] |= {
        "name": "simulated", "path": None, "extra": [], "fold_file": None, "soft_labels": False,
    }  # fmt: skip
    settings["train"]["init_from"] = None
    settings["logger"]["kind"] = "none"
    return settings


def _calibration(runs: Sequence[Run], config: Config) -> dict[str, Any] | None:
    """The calibration that the runs' predictions of new rows are adjusted with; None if they have none."""
    if any(not run.calibration.is_file() or not run.predictions.is_file() for run in runs):
        return None
    found = adjustment.load_calibration(runs, [], config.eval)
    return None if found is None else found.to_json()


def _reference(
    adapter: Path, config: Config, scratch: Path, rows: Sequence[Comparison]
) -> NDArray[np.float32]:
    """Probabilities of the model that is exported, before it is written."""
    if not rows:
        return np.empty((0, 3), dtype=np.float32)
    folder = scratch / "reference"
    folder.mkdir()
    copy_adapter(adapter, folder)
    Exported("adapter", [], "trained", None, _portable(config), None, None).write(folder)
    found = Predictor.load(folder, *RAW).predict_comparisons(rows)
    free_memory()
    return found


def _predictions(folder: Path, format: str, scratch: Path, rows: Sequence[Comparison]) -> NDArray[np.float32]:
    """Probabilities of an exported model; of a quantised one, with its weights as plain numbers."""
    if not rows:
        return np.empty((0, 3), dtype=np.float32)
    dequantise = FORMATS[format].dequantise if format in FORMATS else None
    if dequantise is not None:
        folder = _dequantised(folder, scratch / "dequantised", dequantise)
    found = Predictor.load(folder, *RAW).predict_comparisons(rows)
    free_memory()
    return found


def _dequantised(
    folder: Path, target: Path, dequantise: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> Path:
    """A copy of a quantised export as ``merged16``."""
    target.mkdir()
    for file in sorted(folder.iterdir()):
        if file.suffix != ".safetensors" or file.name == "head.safetensors":
            shutil.copyfile(file, target / file.name)
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    save_file(dequantise(tensors), target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors.index.json").unlink(missing_ok=True)
    for name, change in (("config.json", "quantization_config"), (EXPORT, "")):
        values = json.loads((target / name).read_text(encoding="utf-8"))
        values.pop(change, None)
        if name == EXPORT:
            values["format"] = "merged16"
        write_json(target / name, values)
    return target


def _require_agreement(found: Agreement, format: str, force: bool) -> None:
    if found.agrees or force:
        return
    remedy = "type=f16 or type=f32" if format == "gguf" else "format=adapter, which changes nothing"
    raise UserError(
        f"format={format}: the exported model differs from the run by more than "
        f"{differences.LARGEST_CHANGE:g} in log loss, so it was not kept.\n"
        f"  Use {remedy}, or keep it with force=true."
    )
