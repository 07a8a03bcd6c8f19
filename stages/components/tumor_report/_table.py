"""The table of words: what words, and runs of words, mean in a report, and which cues change that.

Kind, value, phrases. Words are lower-case, without accents and hyphens ("hyper intense" is
"hyper-intense" too); `*` stands for any letters at one end. Of two phrases the longer counts.
"""

Table = dict[str, dict[str, str]]
NOTHING = ""  # what a run of words means that only looks like a value: "extra-axial", "high grade"

WORDS: Table = {
    "presence": {
        "yes": "yes, true, present, positive, y, 1",
        "no": (
            "no, none, false, absent, negative, n, 0, not present, not visible, not seen,"
            "not detected, not identified, not evident, not found, not observed"
        ),
        NOTHING: "no information, no data, no idea, no answer, n / a",
    },
    "type": {
        "glioma": "*glioma, *gliomas, *glioblastoma, *glioblastomas, *astrocytoma, *astrocytomas",
        "meningioma": "meningioma, meningiomas",
        "pituitary": (
            "adenoma, adenomas, macroadenoma, macroadenomas, microadenoma, microadenomas,"
            "pituitary tumor, pituitary tumors, pituitary tumour, pituitary tumours,"
            "pituitary mass, pituitary masses, pituitary lesion, pituitary lesions,"
            "pituitary neoplasm, pituitary neoplasms, pituitary gland tumor,"
            "pituitary gland tumour, pituitary gland mass, pituitary gland lesion,"
            "hypophys* tumor, hypophys* tumour, hypophys* mass, hypophys* lesion"
        ),
    },
    "size": {"small": "small", "medium": "medium, moderate", "large": "large"},
    "shape": {
        "round": "round, rounded, roundish, spherical, globular, circular",
        "oval": "oval, ovoid, elliptical",
        "irregular": "irregular, irregularly",
        "lobulated": "lobulated, lobular, multilobulated, multilobular",
    },
    "intensity": {
        "hyperintense": (
            "hyperintens*, hyperdens*, hyper intens*, hyper dens*, high, bright, increased"
        ),
        "hypointense": "hypointens*, hypodens*, hypo intens*, hypo dens*, low, dark, decreased",
        "isointense": "isointens*, isodens*, iso intens*, iso dens*, iso, intermediate",
        "mixed": "mixed, heterogen*, varied, variable, varies, varying",
        NOTHING: "low grade, high grade, low resolution, high resolution, low field, high field",
    },
    "orientation": {
        "axial": "axial, transverse, transaxial",
        "coronal": "coronal",
        "sagittal": "sagittal, saggittal, sagital, saggital",
        NOTHING: "extra axial, intra axial, para sagittal, para saggital, para sagital",
    },
    "location": {
        "skull base": (
            "petrous, petrous temporal, petrous right temporal, petrous left temporal,"
            "petrous and temporal, petrous part temporal, petrous part of temporal, skull base,"
            "base of the skull, cranial base, sphenoid*, clivus, olfactory groove, anterior fossa,"
            "anterior cranial fossa, middle fossa, middle cranial fossa, temporal fossa,"
            "temporal cranial fossa"
        ),
        "falx": "falx, falcine, parafalcine, interhemispheric, parasagittal, para sagittal",
        "sellar region": (
            "pituitary, hypophys*, sella, sellar, suprasellar, parasellar, intrasellar,"
            "supra sellar, chiasm*"
        ),
        "cerebellopontine angle": "cerebellopontine, cerebello pontine, cpa",
        "cerebellum": "cerebell*, hemisphere of the cerebellum, hemispheres of the cerebellum",
        "brainstem": "brainstem, brain stem, pons, pontine, midbrain, medulla",
        "posterior fossa": "posterior fossa, posterior cranial fossa",
        "basal ganglia": "basal ganglia, putamen, caudate, lentiform",
        "thalamus": "thalam*",
        "ventricle": "ventric*, intraventric*, periventric*",
        "convexity": "convexit*, cerebral convexit*",
        "frontal lobe": "frontal*, fronto*, bifrontal*, bifronto*",
        "temporal lobe": "temporal*, temporo*, bitemporal*, bitemporo*",
        "parietal lobe": "parietal*, parieto*, biparietal*, biparieto*",
        "occipital lobe": "occipital*, occipito*, bioccipital*, bioccipito*",
        "cerebral hemisphere": "hemispher*, cerebr*",
    },
    "side": {
        "left": "left",
        "right": "right",
        "bilateral": "bilateral*, both, bifrontal, bitemporal, biparietal, bioccipital",
        "midline": "midline",
        NOTHING: (
            "midline shift, midline shift to the left, midline shift to the right,"
            "midline shift towards the left, midline shift towards the right,"
            "left midline shift, right midline shift, shift of the midline,"
            "shift of the midline to the left, shift of the midline to the right,"
            "shift to the left, shift to the right, midline structures, left handed, right handed"
        ),
    },
    # Of a side: "viewer's right" names another than the patient's.
    "convention": {"viewer": "viewer, viewers, observer, observers, image left, image right"},
    "key": {
        "tumor": (
            "tumor, tumour, has tumor, has tumour, hastumor, tumor present, tumour present,"
            "tumor presence, tumour presence, has tumor present, is tumor, is tumor present,"
            "tumor detected, tumor visible, tumor identified, tumor found, tumor seen,"
            "tumor status, presence of tumor, presence of a tumor, brain tumor, brain tumour"
        ),
        "location": "location, tumor location, tumour location",
        "side": "side, laterality",
        "size": "size, tumor size, tumour size",
        "shape": "shape, tumor shape, tumour shape",
        "intensity": "intensity, signal intensity",
        "orientation": "orientation, plane",
        "description": "description, general description, generaldescription",
    },
}

# German, Spanish and abbreviations; a place in these words is not kept word for word.
TRANSLATIONS: Table = {
    "presence": {
        "yes": "ja, si, presente, vorhanden",
        "no": "nein, kein, keine, keiner, nicht vorhanden, nicht sichtbar, ausente, ninguno",
    },
    "type": {"meningioma": "meningeom, meningeome", "glioma": "gliom, gliome, *glioblastom"},
    "size": {
        "small": "klein, kleine, kleiner, kleines, kleinen, pequeno, pequena",
        "medium": "mittel, mittelgross*, mediano, mediana",
        "large": "gross, grosse, grosser, grosses, grossen, grande, grandes",
        NOTHING: "gross total",
    },
    "shape": {
        "round": "rund, runde, runder, rundes, rundlich*, redond*, esferic*",
        "oval": "ovale, ovaler, ovales, ovalad*",
        "irregular": "unregelmassig*",
        "lobulated": "gelappt*, lobulad*",
    },
    "intensity": {
        "hyperintense": "hiperintens*",
        "hypointense": "hipointens*",
        "mixed": "gemischt*, inhomogen*, mixta, mixto",
    },
    "orientation": {
        "axial": "axiale, axialer, axiales, axialen, transversal",
        "coronal": "koronar, koronare, koronarer, koronares, koronaren",
        "sagittal": "sagittale, sagittaler, sagittales, sagittalen",
    },
    "location": {
        "skull base": "schadelbasis, base del craneo",
        "sellar region": "selar, supraselar, hipofis*, silla turca",
        "cerebellopontine angle": "kleinhirnbruckenwinkel, pontocerebelos*",
        "cerebellum": "kleinhirn*, cerebelo, hemisferio cerebeloso",
        "brainstem": "hirnstamm, tronco encefalico, tronco cerebral",
        "posterior fossa": "hintere schadelgrube, hinteren schadelgrube, fosa posterior",
        "basal ganglia": "basalganglien, ganglios basales",
        "thalamus": "talamo",
        "ventricle": "ventrikel*",
        "convexity": "konvexitat*, convexidad",
        "frontal lobe": "frontallappen*, stirnlappen*, lobulo frontal",
        "temporal lobe": "temporallappen*, schlafenlappen*, lobulo temporal",
        "parietal lobe": "parietallappen*, scheitellappen*, lobulo parietal",
        "occipital lobe": "okzipital*, hinterhauptlappen*, lobulo occipital",
        "cerebral hemisphere": "hemisphare*, grosshirn*, hemisferi*",
    },
    "side": {
        "left": "lt, links, linke, linker, linken, linkes, linksseitig*, izquierd*",
        "right": "rt, rechts, rechte, rechter, rechten, rechtes, rechtsseitig*, derech*",
        "bilateral": "beidseits, beide, beiden, ambos, ambas",
        "midline": "mittellinie, linea media",
        NOTHING: "mittellinienverlagerung nach links, mittellinienverlagerung nach rechts",
    },
    "convention": {"viewer": "betrachter*, observador"},
    "key": {
        "location": "lokalisation, lage, ubicacion, localizacion",
        "side": "seite, lado, lateralidad",
        "size": "grosse, tamano",
        "shape": "form, forma",
        "intensity": "intensitat, signalintensitat, intensidad",
        "orientation": "orientierung, ebene, schnittebene, orientacion, plano",
        "description": "beschreibung, allgemeine beschreibung, descripcion, descripcion general",
    },
}

# Cues of prose, by what they do to the words around them.
CUES: Table = {
    "mention": {
        "tumor": (
            "tumor, tumour, tumors, tumours, *glioma, *gliomas, *glioblastoma, *glioblastomas,"
            "meningioma, meningiomas, *adenoma, *adenomas, pituitary tumor, pituitary tumour,"
            "pituitary adenoma, pituitary macroadenoma, pituitary microadenoma, pituitary mass,"
            "neoplasm, neoplasms, cancer, mass, masses, metastasis, metastases, tumore, tumoren,"
            "*astrocytoma, *astrocytomas, medulloblastoma, medulloblastomas, ependymoma,"
            "*pharyngioma, schwannoma, schwannomas, lymphoma, *gliom, *glioblastom, meningeom,"
            "raumforderung*, metastase, metastasen, tumores, masa, masas, neoplasia"
        ),
        "finding": "lesion, lesions, lasion, lasionen, lesiones",
        "abnormality": "abnormality, abnormalities, abnormal growth, abnormal growths",
        NOTHING: (
            "mass effect, white matter lesion, white matter lesions, ischemic lesion,"
            "ischemic lesions, vascular lesion, vascular lesions, demyelinating lesion,"
            "demyelinating lesions"
        ),
    },
    "no": {  # denies what follows
        "no": (
            "no, not, without, never, absence of, free of, negative for, neither, nor, lack of,"
            "devoid of, free from, clear of, kein, keine, keinen, keiner, keinerlei, nicht, ohne,"
            "sin, ningun, ninguna"
        ),
        NOTHING: "no doubt, no question, without doubt, without question, not possible, not sure",
    },
    "seen_not": {  # denies a tumor where "not" stands between: "tumor is not clearly seen"
        "seen_not": (
            "visible, seen, present, identified, detected, found, evident, apparent, observed,"
            "noted, appreciated, shown, demonstrated, erkennbar, sichtbar, nachweisbar, vorhanden"
        ),
    },
    "gone": {"gone": "absent, free, ausente, no visible, no presente"},  # "tumor is absent"
    "end": {  # where a denial ends: "no edema around the tumor", "no details about the tumor"
        "end": (
            "about, around, surrounding, near, within, in, on, due to, related to, adjacent to,"
            "next to, because, except, besides, other than, with, there is, there are, of the,"
            "of this, and a, and an, and the, and is, and has, and shows, and measures, suggests,"
            "indicates, implies, that the, um, en, im"
        ),
        NOTHING: "that there is, that there are",
    },
    "past": {
        "after": (  # what follows is over
            "status post, s / p, history of, resection of, resected, removal of, removed, prior,"
            "previous, previously, treated, surgery for, zustand nach, antecedente*"
        ),
        "clause": (
            "was removed, were removed, been removed, was resected, were resected, been resected,"
            "surgically removed, surgically resected, was excised, been excised, previously seen,"
            "previously noted, previously described, was previously, no longer"
        ),
    },
    "doubt": {
        "after": (
            "possible, possibly, perhaps, probable, questionable, suspicious for, suspicion of,"
            "concern for, concerning for, question of, moglich*, vielleicht, verdacht, posible,"
            "posiblemente, quizas"
        ),
        "clause": "may, might, suspected, suspicious, uncertain, fraglich, podria, konnte",
    },
    "general": {  # the clause is a rule, a question, a refusal or about the text itself
        "general": (
            "can, ca not, cannot, could, would, should, if, whether, depending, vary,"
            "varies, format, such as, not specified, not mentioned, not visible, not clear,"
            "not provided, not described, not given, not stated, not explicitly specified,"
            "not explicitly mentioned, unclear, unable, difficult, sorry, pea sized, responsible,"
            "likely displays, information, important, essential, necessary, consider, describe,"
            "is a type, is an abnormal, is described in, are described in, is mentioned in,"
            "are mentioned in, is provided in, are provided in, is also described in, rule out,"
            "rules out, ruled out, exclude, excluded, unlikely, please, provide, upload,"
            "likelihood, probability, possibility, risk of, chance, unlike, mimic*, language model,"
            " not possible, not sure, ob, ?, : yes / no"
        ),
    },
    "other": {  # a finding that is no tumor
        "other": (
            "edema, oedema, swelling, cyst, cysts, hemato*, haemato*, hemorrhag*, haemorrhag*,"
            "infarct*, fluid, effusion, shift, vessel, vessels, odem, blutung, quiste"
        ),
    },
    "opener": {  # where its words may begin
        "opener": (
            "with, causing, causes, cause, along, there, is, are, has, have, shows, mit, con,"
            "and surrounding, and associated, and peritumoral, and perilesional"
        ),
    },
    "seen": {
        "seen": (
            "arise, arises, originating, located, situated, suspected, seen, found, present,"
            "visible, noted, identified, centered, centred, arising, is, are, lies, liegt,"
            "lokalisiert, localizada, localizado"
        ),
    },
    "at": {  # where a place begins
        "at": (
            "in, within, at, near, on, along, of, over, from, over the, from the, in the,"
            "within the, at the, near the, on the, along the, of the, im, in der, en el, en la"
        ),
    },
    "verb": {  # where it ends
        "verb": (
            "is, are, was, measures, appears, has, shows, extends, causes, causing, displaces,"
            "compresses, involves, with, that, where, liegt, misst, of the brain, and it, and its,"
            "and appears, and has, and is, and the, and there, and measures, and shows,"
            "and extends, and causes, and a, and an, and another"
        ),
    },
    "normal": {
        "normal": (
            "normal, healthy, unremarkable, within normal limits, unauffallig*, normales, normaler"
        ),
    },
    "whole": {"whole": "brain, mri, scan, image, study, examination, exam, head, mrt, it"},
    "part": {
        "part": "rest, remaining, remainder, otherwise, structure*, parenchyma, size, tissue*"
    },
}
