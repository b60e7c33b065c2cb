"""``onnx``: a graph for ONNX Runtime and the many programs that read its format."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.models.exports.contract import (
    REFUSALS,
    Contract,
    ExportFailedError,
    ExportOptions,
    Format,
    LoadedExport,
    describe,
    first_line,
    read_description,
)
from sat_vg.backbone_finetuning.models.exports.model_card import prepare_lines
from sat_vg.backbone_finetuning.models.exports.tracing import quiet, trace
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write

INPUT = "images"
DESCRIPTION = "sat_vg"  # key of the file's metadata
_LARGEST = (1 << 31) - (1 << 24)  # bytes; one message of protobuf holds no more than 2 GiB


def write(model: FineTuneModel, options: ExportOptions, path: Path) -> Contract:
    """Write the graph with its description."""
    _module("onnx"), _module("onnxscript")
    weights = sum(tensor.nbytes for tensor in model.network.state_dict().values())
    if weights > _LARGEST:
        raise ConfigError(
            f"{model.backbone} has {weights / 2**30:.1f} GiB of weights; an ONNX file holds 2. Use --format pt2"
        )
    program, contract = trace(model, options, "onnx")
    sizes = {0: "batch"} if contract.fixed_size else {0: "batch", 2: "height", 3: "width"}
    with quiet(), torch.no_grad():
        try:
            converted = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=list(contract.outputs),
                dynamic_shapes=(sizes,),
                dynamo=True,
                verbose=False,
            )
        except REFUSALS as error:
            raise ExportFailedError(f"torch.onnx.export: {first_line(error)}") from error
    assert converted is not None
    graph: Any = converted.model_proto
    _forget_origins(graph)
    graph.metadata_props.add(key=DESCRIPTION, value=describe(model, contract))
    with atomic_write(path) as file:
        file.write(graph.SerializeToString())
    return contract


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--format onnx needs {name}, which cannot be imported ({error}); install it with "
            "pip install 'sat_vg[onnx]', or use --format pt2, which needs torch alone"
        ) from error


def _forget_origins(graph: Any) -> None:
    """Remove the paths of this machine that the conversion notes."""
    parts = (graph.graph, *graph.functions)
    nodes = [node for part in parts for node in part.node]
    for one in (graph, *parts, *nodes, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del one.metadata_props[:]
        one.doc_string = ""


def read(path: Path, model: FineTuneModel) -> LoadedExport:
    """Open a graph with ONNX Runtime, on the CPU."""
    contract = _contract_in(path)
    runtime: Any = _module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common
        raise CheckpointError(
            f"{str(path)!r} cannot be opened by ONNX Runtime {runtime.__version__}: {first_line(error)}; "
            "export it again"
        ) from error

    def run(images: Tensor) -> Mapping[str, Tensor]:
        try:
            given = session.run(list(contract.outputs), {INPUT: images.numpy()})
        except Exception as error:
            raise ExportFailedError(f"ONNX Runtime: {first_line(error)}") from error
        return {name: torch.from_numpy(value) for name, value in zip(contract.outputs, given, strict=True)}

    return LoadedExport(contract, run)


def _contract_in(path: Path) -> Contract:
    """From the description in the file; its weights lie in it and nowhere else."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {str(path)!r}; check the path")
    onnx: Any = _module("onnx")
    try:
        graph = onnx.load_model(path, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's own class moves between its versions
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {first_line(error)}. The file is cut short, altered, or no ONNX; export "
            "it again"
        ) from error
    is_whole = not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.graph.initializer)
    found = {entry.key: entry.value for entry in graph.metadata_props}
    return read_description(path, found.get(DESCRIPTION) if is_whole else None)


def usage(model: FineTuneModel, contract: Contract, name: str) -> str:
    """How the file is used."""
    return (
        "import onnxruntime\nimport torch\nfrom torchvision.transforms import v2\n\n"
        f"session = onnxruntime.InferenceSession({name!r})\n"
        f"{prepare_lines(model.preprocessing, contract)}\n"
        f'# session.run(None, {{"{INPUT}": prepare(image)[None].numpy()}}) gives, in this order:\n'
        f"# {', '.join(contract.outputs)}"
    )


FORMAT = Format(
    endings=(".onnx",),
    options=frozenset({"part", "with_normalisation", "fixed_size"}),
    write=write,
    read=read,
    usage=usage,
    packages=("onnx", "onnxscript", "onnxruntime"),
)
