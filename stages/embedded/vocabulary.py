"""The tiny models' tokenizer: CLIP's own class and rules with about two thousand tokens.

CLIP's 49,408 tokens would cost more parameters than the rest of a tiny text encoder. The merges
are learned from the words below (the caption schema's and a radiologist's), so that each is one
token and captions stay well within 77; any other word still has its bytes.
"""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

RADIOLOGY = """
tumor tumour tumors yes no none not location size shape intensity orientation general
description axial coronal sagittal saggital transverse plane view slice section image scan
images mri magnetic resonance imaging brain head skull scalp neck face eye eyes orbit orbits
bone sinus sinuses nasal left right midline central center bilateral side both hemisphere
hemispheres hemispheric upper lower anterior posterior superior inferior medial lateral mid
middle deep superficial near adjacent within around along between above below region area zone
part portion surface base top front back frontal parietal temporal occipital lobe lobes insula
insular frontoparietal temporoparietal parietooccipital frontotemporal cerebellum cerebellar
brainstem stem pons medulla midbrain thalamus thalamic basal ganglia ganglion corpus callosum
ventricle ventricles ventricular lateral third fourth intraventricular periventricular pineal
sella sellar suprasellar parasellar pituitary gland fossa cavernous optic chiasm clivus
convexity falx falcine parafalcine parasagittal tentorium tentorial dura dural meninges
meningeal extra intra axial cerebellopontine angle cranial skull cortex cortical subcortical
cerebral cerebrum vertex white gray grey matter tissue tissues fluid cerebrospinal csf small
medium large moderate sized tiny big huge extensive size about approximately millimeters cm mm
round rounded oval ovoid spherical circular elliptical irregular lobulated lobular nodular
multilobulated elongated ring shaped like well ill poorly defined circumscribed margins margin
borders border edges smooth spiculated heterogeneous homogeneous diffuse focal solid cystic
mixed hyperintense hypointense isointense intensity intense bright dark low high intermediate
variable uniform signal contrast enhanced enhancing enhancement unenhanced weighted t 1 2 flair
gadolinium proton density glioma gliomas meningioma meningiomas adenoma lesion lesions mass
masses neoplasm abnormality abnormal normal healthy anatomy structure structures structural
symmetric symmetrical asymmetry edema oedema swelling surrounding necrosis necrotic core rim
effect shift compression compressing displacement displacing distortion infiltrating invasive
invading extending extension involving arising attached broad tail calcification hemorrhage
showing shows show visible seen present presence absence absent evidence evident appearance
appears appear suggesting suggests suggestive indicating indicates consistent likely possible
possibly significant clear distinct notable noted obvious without with and or of the a an in on
at to from by is are was there this that it its as for which no one two multiple single several
prominent mild severe typical intact unremarkable
"""


def build_tokenizer(captions: list[str], vocab_size: int = 1536) -> "CLIPTokenizer":
    """Learn byte-level merges from the words above and from `captions`; deterministic."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    rules = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    learner.normalizer, learner.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    # Every byte may end a word. Unless named first, the trainer numbers those tokens in the order
    # of a hash map, another at every call, and ids no longer fit the embeddings of a checkpoint.
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[
            "<|startoftext|>",
            "<|endoftext|>",
            *(symbol + "</w>" for symbol in alphabet),
        ],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        min_frequency=2,
    )
    words = sorted(set(RADIOLOGY.split()))
    learner.train_from_iterator([*captions, *words, *words, *words], trainer)
    model = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = dict(model["vocab"])
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
