"""A fabricated run for the tests of report: real record types, small random images."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import registry
from pipeline.contracts import (
    LABELS,
    SCHEMA_VERSION,
    Artifact,
    CaptionRecord,
    CheckpointRecord,
    PluginConfig,
    ScoreRecord,
    SliceRecord,
    SyntheticRecord,
    TumorReport,
    write_records,
)
from pipeline.run import manifest
from pipeline.settings import (
    CaptionConfig,
    ClassifyConfig,
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    PreprocessConfig,
)
from stages.evaluate.copies import COPIED
from stages.evaluate.differences import GAP
from stages.evaluate.location_table import SPECS
from stages.evaluate.metrics.fid import SPEC as FID
from stages.evaluate.metrics.kid import SPEC as KID
from stages.evaluate.reconstruction import PSNR
from stages.report.artifacts import ReportInputs

ODD_PROMPT = 'tumor: yes; <script>alert("x")</script> & {{ 7 * 7 }} location: left'


ARMS = {
    "sd15-ovis": ("tiny_sd15", "ovis", False, 0.24),
    "sdxl-ovis": ("tiny_sdxl", "ovis", False, 0.16),
    "sdxl-ovis-te": ("tiny_sdxl", "ovis", True, 0.15),
    "sdxl-gemma": ("tiny_sdxl", "gemma", False, 0.17),
}


class Fabricator:
    """Publishes artifacts the way the runner does, with random images."""

    def __init__(self, root: Path, image_size: int = 24):
        self.root = root
        self.image_size = image_size
        self.rng = np.random.default_rng(7)

    def image(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (self.image_size, self.image_size)
        Image.fromarray(self.rng.integers(0, 255, shape, dtype=np.uint8)).convert("RGB").save(path)

    def publish(self, stage, record_type, name, config, records, *, counts, notes, arms=()):
        folder = self.root / stage / name
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / "records.jsonl", records)
        digest = hashlib.sha256(f"{stage}/{name}".encode()).hexdigest()
        manifest.write(
            folder,
            {
                "schema_version": SCHEMA_VERSION,
                "stage": stage,
                "arm_names": list(arms),
                "digest": digest,
                "config": config.model_dump(mode="json"),
                "config_digest": digest[::-1],
                "inputs": {},
                "source_digest": digest,
                "seed": 11,
                "dtype": "float32",
                "versions": {"python": "3.11.9", "torch": "2.13.0"},
                "device": "cpu",
                "machine": {"cpu": "Test CPU", "cores": 2, "memory_gib": 8.0, "gpu": None},
                "started": "2026-01-05T10:00:00+00:00",
                "seconds": 62.5,
                "parts": registry.list_parts(stage, config),
                "counts": counts,
                "notes": {"methods": f"Methods sentence of {stage}.", **notes},
                "files": manifest.list_files(folder),
            },
        )
        return manifest.open_artifact(folder, record_type)

    def preprocess(self) -> Artifact[SliceRecord]:
        records = []
        for split in ("train", "val", "test"):
            for label in LABELS:
                for index in range(3):
                    slice_id = f"{split}-{label}-{index}"
                    path = f"images/{slice_id}.png"
                    self.image(self.root / "preprocess" / "one" / path)
                    records.append(
                        SliceRecord(
                            slice_id=slice_id,
                            subject_id=None,
                            group_id=slice_id,
                            source="phantom",
                            split=split,
                            label=label,
                            orientation="axial" if index == 0 else "unknown",
                            modality="t2" if index == 0 else "unknown",
                            image_path=path,
                            original=f"{slice_id}.nii.gz",
                            original_width_px=200,
                            original_height_px=180,
                        )
                    )
        config = PreprocessConfig(source=PluginConfig(name="phantom"), image_size=32)
        notes = {
            "leakage_audit": {
                "near_duplicate_clusters": 297,
                "dropped_from": {"train": {"glioma": 8}},
            },
            "slices": {"train": {"glioma": {"axial": 19, "coronal": 23}, "notumor": {"axial": 31}}},
            "warnings": ["the test split has 3 groups (subjects) without a tumour"],
        }
        counts = {"read": 40, "written": 36, "skipped": 4}
        return self.publish(
            "preprocess", SliceRecord, "one", config, records, counts=counts, notes=notes
        )

    def caption(self, vlm: str) -> Artifact[CaptionRecord]:
        settings = {"path": f"captions/{vlm}.jsonl"}
        config = CaptionConfig(vlm=PluginConfig(name="precomputed", settings=settings))
        counts = {"written": 24, "failed": 1}
        row = {
            "field": "side",
            "reference": "mask",
            "n": 21,
            "num_groups": 7,
            "stated": 0.9,
            "accuracy": {"value": 0.6214, "low": 0.5, "high": 0.75},
            "commonest": "left",
            "majority": 0.5,
            "chance": 0.45,
            "above_majority": {"value": 0.1214, "low": 0.01, "high": 0.2},
            "kappa": {"value": 0.31, "low": 0.1, "high": 0.5},
        }
        notes = {
            "fill_rate": {"location": 0.4821, "size": 0.9},
            "failed": {"too long": 1},
            "agreement": [row] if vlm == "ovis" else [],
        }
        return self.publish("caption", CaptionRecord, vlm, config, [], counts=counts, notes=notes)

    def finetune(self, arm: str, base: str, text_encoder: bool) -> Artifact[CheckpointRecord]:
        folder = self.root / "finetune" / arm
        folder.mkdir(parents=True)
        with (folder / "train_log.jsonl").open("w") as log:
            for step in range(1, 21):
                row = {"step": step, "loss": 0.5 / step, "lr": 1e-4}
                if step % 5 == 0:
                    row["held_out_loss"] = 0.6 / step
                log.write(json.dumps(row) + "\n")
        config = FinetuneConfig(
            base_model=PluginConfig(name=base),
            lora_rank=8,
            train_text_encoder=text_encoder,
            max_steps=20,
        )
        result = CheckpointRecord(step=20, path=".", train_loss=0.03, held_out_loss=0.04)
        counts = {"written": 1}
        return self.publish(
            "finetune", CheckpointRecord, arm, config, [result], counts=counts, notes={}
        )

    def generate(self, arm: str, base: str) -> Artifact[SyntheticRecord]:
        name = arm.replace("/", "-")
        records = []
        for label in LABELS:
            for index in range(3):
                image_id = f"{name}-{label}-{index}"
                path = f"images/{image_id}.png"
                self.image(self.root / "generate" / name / path)
                records.append(
                    SyntheticRecord(
                        image_id=image_id,
                        image_path=path,
                        prompt=ODD_PROMPT if index == 0 else f"{label}; prompt {index}",
                        requested=TumorReport(tumor=label != "notumor", orientation="sagittal"),
                        modality="flair",
                        label=label,
                        seed=index,
                        adapter_digest=None,
                    )
                )
        config = GenerateConfig(base_model=PluginConfig(name=base), image_size=32, num_images=12)
        return self.publish(
            "generate", SyntheticRecord, name, config, records, counts={"written": 12}, notes={}
        )

    def evaluate(self, notes=None, scores=None) -> Artifact[ScoreRecord]:
        rows = {name: kid for name, (_, _, _, kid) in ARMS.items()}
        rows |= {"base/tiny_sdxl": 0.3, "vae/tiny_sdxl": 0.06, "real": 0.0008, "noise": 1.06}
        rows |= {"base/tiny_sd15": 0.36, "vae/tiny_sd15": 0.08}
        records = []
        for arm in ("vae/tiny_sdxl", "vae/tiny_sd15"):
            psnr = _score(arm, "evaluate", "psnr", 29.4, 0.3, higher=True)
            records.append(psnr.model_copy(update={"features": None}))
        for arm in list(ARMS):
            records.append(_score(arm, "evaluate", "gap_closed", 0.58, 0.1, higher=True))
        for group in ("all", *LABELS):
            for arm, kid in rows.items():
                for metric, value in (("kid", kid), ("fid", 300 * kid)):
                    records.append(_score(arm, "evaluate", metric, value, 0.1 * value, group=group))
        for arm, share in (("real", 0.02), ("sdxl-ovis", 0.4)):
            copied = _score(arm, "evaluate", "copied_share", share, 0.02)
            records.append(copied.model_copy(update={"features": None, "p": 0.0004}))
        if notes is None:
            notes = {
                "differences": {
                    "sdxl-ovis - sd15-ovis": [
                        _difference("kid", -0.08, 0.02),
                        _difference("fid", -24.0, 6.0),
                    ],
                    "sdxl-ovis-te - sdxl-ovis": [
                        _difference("kid", -0.01, 0.02),
                        _difference("fid", -3.0, 6.0),
                    ],
                    "sdxl-ovis - sdxl-gemma": [_difference("kid", -0.01, 0.004)],
                },
                "warnings": ["fid: 12 images are fewer than 1280 features"],
                "copies": _copies(),
                "metrics": {"kid": "Binkowski et al., ICLR 2018"},
            }
        if scores is not None:
            records = scores
        specs = (KID, FID, PSNR, GAP, COPIED, *SPECS.values())
        styles = {spec.key: spec.style().model_dump() for spec in specs}
        notes = {"scores": styles, **notes}
        config = EvaluateConfig()
        return self.publish("evaluate", ScoreRecord, "one", config, records, counts={}, notes=notes)

    def classify(self, notes=None) -> Artifact[ScoreRecord]:
        values = {"real": (0.95, 0.96, 0.93), "baseline/metadata_only": (0.71, 0.7, 0.72)}
        values |= dict.fromkeys(ARMS, (0.8, 0.74, 0.92))
        records = []
        for arm, row in values.items():
            for metric, value in zip(("accuracy", "sensitivity", "specificity"), row, strict=True):
                records.append(_score(arm, "classify", metric, value, 0.03, higher=True))
        if notes is None:
            notes = {
                "differences": {
                    f"{name} - real": [
                        {**_difference("accuracy", -0.15, 0.04), "permutation_p": 0.0123},
                        _difference("sensitivity", -0.22, 0.05),
                        _difference("specificity", -0.01, 0.03),
                    ]
                    for name in ARMS
                },
                "confusion": {
                    name: {
                        "true_positive": 90,
                        "false_negative": 8,
                        "false_positive": 3,
                        "true_negative": 41,
                    }
                    for name in ("real", *ARMS)
                },
            }
        return self.publish(
            "classify", ScoreRecord, "one", ClassifyConfig(), records, counts={}, notes=notes
        )

    def inputs(
        self, *, evaluate_notes=None, classify_notes=None, evaluate_scores=None
    ) -> ReportInputs:
        captions = {vlm: self.caption(vlm) for vlm in ("ovis", "gemma")}
        generated = {name: self.generate(name, base) for name, (base, *_) in ARMS.items()}
        for base in ("tiny_sd15", "tiny_sdxl"):
            generated[f"base/{base}"] = self.generate(f"base/{base}", base)
        return ReportInputs(
            preprocess=self.preprocess(),
            caption={name: captions[vlm] for name, (_, vlm, _, _) in ARMS.items()},
            finetune={name: self.finetune(name, b, te) for name, (b, _, te, _) in ARMS.items()},
            generate=generated,
            evaluate=self.evaluate(evaluate_notes, evaluate_scores),
            classify=self.classify(classify_notes),
        )


def _score(arm, stage, metric, value, half, group="all", higher=False):
    return ScoreRecord(
        experiment="fabricated",
        arm=arm,
        stage=stage,
        metric=metric,
        features=None if stage == "classify" else "efficientnet_lite0",
        group=group,
        value=value,
        low=value - half,
        high=value + half,
        n_real=12,
        n_synthetic=12,
        higher_is_better=higher,
    )


def _copies():
    pair = {"by": "pixels", "correlation": 0.987, "distance": 4.5, "copy": True}
    pair |= {"image": "sdxl-ovis-glioma-1", "train": "train-glioma-2"}
    return {
        "network": "efficientnet_lite0",
        "num_train": 1234,
        "num_held_out": 12,
        "threshold_distance": 7.25,
        "threshold_correlation": 0.861,
        "num_planted_each": 48,
        "recall": {"exact": 1.0, "shifted": 0.9583},
        "recall_by_pixels": {"exact": 1.0, "shifted": 0.9375},
        "recall_by_features": {"exact": 1.0, "shifted": 0.25},
        "closest": {"sdxl-ovis": [pair]},
    }


def _difference(metric, value, half):
    return {"metric": metric, "value": value, "low": value - half, "high": value + half}
