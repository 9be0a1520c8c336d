"""`odediff export`: a network, or a whole sampler, as one ONNX file."""

from __future__ import annotations

import argparse
from typing import Any

from .options import Commands, add_command, add_limits, add_plan_options, given, open_model, plan_options, print_facts

_DESCRIPTION = """\
Write a model's network, or with --solver or --nfe the whole sampler, as one
ONNX file: noise in, images out, and no Python model code where it runs. The
file is run in onnxruntime beside the model, and kept only if both agree."""

_EPILOG = """\
examples:
  odediff export mnist --out net.onnx                     the network
  odediff export mnist --nfe 10 --out digits.onnx         the default sampler at 10 evaluations
  odediff export mnist --solver ddim --nfe 50 --form loop --out ddim.onnx
  odediff export runs/mine/model --nfe 8 --precision fp16 --batch 16 --out fast.onnx
  odediff export runs/digits/model --nfe 10 --guidance 2 --out guided.onnx
  odediff export runs/mine/model --solver tuned --nfe 8 --out tuned.onnx
  odediff export mnist --nfe 8 --target tensorrt --batch 1 --check tensorrt --out trt.onnx
  odediff sample digits.onnx --n 64                       draw with the file"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "export", run, help="write a model or a sampler as ONNX", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a bundled model's name, a folder, or a network's .onnx file that odediff wrote"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write, .onnx")
    parser.add_argument("--solver", metavar="NAME", help="export the sampler with this solver (default: as `sample`)")
    parser.add_argument("--nfe", type=int, metavar="N", help="export the sampler, with N evaluations (default: 20)")
    parser.add_argument("--form", metavar="NAME", help="unrolled or loop (default: unrolled up to 12 evaluations)")
    parser.add_argument("--batch", type=int, metavar="N", help="a fixed number of images a run (default: any)")
    parser.add_argument("--precision", metavar="NAME", help="fp32 (default), fp16 or int8")
    parser.add_argument("--calibration", type=int, metavar="N", help="samples to calibrate int8 on (default: 16)")
    parser.add_argument(
        "--target", default="onnxruntime", metavar="NAME", help="onnxruntime (default), tensorrt, or tensorrt-10.9"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="of the operators (default: the target's)")
    add_plan_options(parser)
    add_limits(parser)
    parser.add_argument("--guidance", type=float, metavar="W", help="of a class-conditional model, in the graph")
    parser.add_argument(
        "--external-data", action="store_true", help="weights in FILE.data (default: only from 2 GB on)"
    )
    parser.add_argument("--license", metavar="NAME", help="for the file's metadata (default: the model's own)")
    parser.add_argument(
        "--check", choices=("tensorrt",), help="say what TensorRT's parser would not take, and fail then"
    )
    parser.add_argument("--triton", metavar="FOLDER", help="also make a model repository for NVIDIA's Triton server")


def run(args: argparse.Namespace) -> None:
    from ..exporting import export

    asked = plan_options(args, args.solver) | given(args, "clip", "threshold", "guidance", "license", "calibration")
    if args.external_data:
        asked["external_data"] = True
    model: Any = open_model(args.model, "cpu")
    made = export(
        model,
        args.out,
        args.solver,
        args.nfe,
        form=args.form,
        batch=args.batch,
        precision=args.precision,
        target=args.target,
        opset=args.opset,
        **asked,
    )
    facts: list[tuple[str, object]] = [("written to", made.path.resolve())]
    facts.append(("what", f"sampler, {made.form}: {made.why}" if made.form else "network"))
    facts.append(("graph", f"{made.precision}, opset {made.opset}, {made.nodes} nodes, {made.bytes / 1e6:.1f} MB"))
    facts.append(("agrees", f"within {made.gap:.1e} of eager torch, of {made.bound:g} allowed"))
    print_facts(facts)
    if args.check:
        from ..onnx.tensorrt import parse

        report = parse(made.path)
        print(report)
        if not report.ok:
            raise ValueError(f"TensorRT would refuse {made.path}; the list above says what, and what to change")
    if args.triton:
        from ..onnx.serving import triton_repository

        print(f"Triton repository {triton_repository(made.path, args.triton)}")
